"""The flags that set limits: one for each unit and window, the same for every noun that has limits."""

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Final

import typer

from controlplane.cli.money import nanousd_from_usd
from controlplane.cli.typer_apps import reader

if TYPE_CHECKING:
    from tollkeeper.common.v1.limits_pb2 import Limit

# As far as the contract lets counters go.
_MOST_COUNTED: Final = 1_000_000_000_000_000


@dataclass(frozen=True, slots=True)
class Capacity:
    """How much a layer admits, in its unit; None means without limit."""

    amount: int | None


@dataclass(frozen=True, slots=True)
class Layer:
    """A unit and a window, and what people call them."""

    unit: str
    window: str
    flags: tuple[str, ...]


class LayerName(StrEnum):
    """A layer, by the name of its flag."""

    REQUESTS_PER_MINUTE = "requests-per-minute"
    REQUESTS_PER_DAY = "requests-per-day"
    REQUESTS_PER_MONTH = "requests-per-month"
    TOKENS_PER_MINUTE = "tokens-per-minute"
    TOKENS_PER_DAY = "tokens-per-day"
    TOKENS_PER_MONTH = "tokens-per-month"
    PARALLEL = "parallel"
    DAILY_BUDGET_USD = "daily-budget-usd"
    MONTHLY_BUDGET_USD = "monthly-budget-usd"
    TOTAL_BUDGET_USD = "total-budget-usd"


LAYERS: Final[Mapping[LayerName, Layer]] = {
    LayerName.REQUESTS_PER_MINUTE: Layer("REQUESTS", "MINUTE", ("--requests-per-minute",)),
    LayerName.REQUESTS_PER_DAY: Layer(
        "REQUESTS", "DAY", ("--requests-per-day", "--daily-requests")
    ),
    LayerName.REQUESTS_PER_MONTH: Layer(
        "REQUESTS", "MONTH", ("--requests-per-month", "--monthly-requests")
    ),
    LayerName.TOKENS_PER_MINUTE: Layer("TOKENS", "MINUTE", ("--tokens-per-minute",)),
    LayerName.TOKENS_PER_DAY: Layer("TOKENS", "DAY", ("--tokens-per-day", "--daily-tokens")),
    LayerName.TOKENS_PER_MONTH: Layer(
        "TOKENS", "MONTH", ("--tokens-per-month", "--monthly-tokens")
    ),
    LayerName.PARALLEL: Layer("PARALLEL", "UNSPECIFIED", ("--parallel",)),
    LayerName.DAILY_BUDGET_USD: Layer("SPEND", "DAY", ("--daily-budget-usd",)),
    LayerName.MONTHLY_BUDGET_USD: Layer("SPEND", "MONTH", ("--monthly-budget-usd",)),
    LayerName.TOTAL_BUDGET_USD: Layer("SPEND", "TOTAL", ("--total-budget-usd",)),
}


@dataclass(frozen=True, slots=True)
class GivenLayers:
    """The layers that a command line sets."""

    capacities: Mapping[LayerName, Capacity]
    soft: bool
    shadow: bool

    def limits(self) -> "list[Limit]":
        """Return them as the contract writes them; nothing given is an empty list.

        Raises:
            BadParameter: `--soft` without a budget or `--shadow` without a limit, which is wrong usage.
        """
        if self.soft and not any(LAYERS[name].unit == "SPEND" for name in self.capacities):
            raise typer.BadParameter("--soft is for budgets: give one beside it")
        if self.shadow and not self.capacities:
            raise typer.BadParameter("--shadow is for limits: give one beside it")
        return [self._limit(name, capacity) for name, capacity in self.capacities.items()]

    def _limit(self, name: LayerName, capacity: Capacity) -> "Limit":
        limit = empty_limit(name)
        limit.capacity = capacity.amount or 0
        limit.unlimited = capacity.amount is None
        limit.soft = self.soft and LAYERS[name].unit == "SPEND"
        limit.shadow = self.shadow
        return limit


def empty_limit(name: LayerName) -> "Limit":
    """Return a limit of that unit and window, which name a layer."""
    from tollkeeper.common.v1.limits_pb2 import Limit, LimitUnit, LimitWindow

    layer = LAYERS[name]
    return Limit(
        unit=LimitUnit.Value(f"LIMIT_UNIT_{layer.unit}"),
        window=LimitWindow.Value(f"LIMIT_WINDOW_{layer.window}"),
    )


def count(text: str) -> Capacity:
    """Read how many are admitted; `none` is without limit.

    Raises:
        ValueError: Not a whole number of at most 1e15.
    """
    if text == "none":
        return Capacity(None)
    if not (text.isascii() and text.isdigit() and len(text) <= 16 and int(text) <= _MOST_COUNTED):
        raise ValueError(f"{text!r} is neither a whole number nor 'none'")
    return Capacity(int(text))


def budget(text: str) -> Capacity:
    """Read how many US dollars may be spent; `none` is without limit.

    Raises:
        ValueError: Not an amount of at most 9,000,000 USD and 9 decimals.
    """
    return Capacity(None) if text == "none" else Capacity(nanousd_from_usd(text))


def takes_layers(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the flags of all layers, which it receives together as the argument `layers`."""

    @functools.wraps(command)
    def run(**arguments: object) -> None:
        capacities: dict[LayerName, Capacity] = {}
        for name in LayerName:
            capacity = arguments.pop(name.name.lower())
            if isinstance(capacity, Capacity):
                capacities[name] = capacity
        soft, shadow = bool(arguments.pop("soft")), bool(arguments.pop("shadow"))
        command(**arguments, layers=GivenLayers(capacities, soft, shadow))

    signature = inspect.signature(command)
    own = [parameter for parameter in signature.parameters.values() if parameter.name != "layers"]
    # Typer reads a command's flags from its signature.
    run.__signature__ = signature.replace(parameters=[*own, *_parameters()])  # type: ignore[attr-defined]  # any function may have one
    return run


def _parameters() -> list[inspect.Parameter]:
    parameters = [
        _parameter(name.name.lower(), _option(layer), None) for name, layer in LAYERS.items()
    ]
    soft = Annotated[
        bool, typer.Option("--soft", help="Budgets reserve what is expected, not the upper bound.")
    ]
    shadow = Annotated[bool, typer.Option("--shadow", help="Count and show, but never refuse.")]
    return [*parameters, _parameter("soft", soft, False), _parameter("shadow", shadow, False)]


def _parameter(name: str, annotation: object, default: object) -> inspect.Parameter:
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation
    )


def _option(layer: Layer) -> object:
    is_money = layer.unit == "SPEND"
    option = typer.Option(
        *layer.flags,
        parser=reader(budget if is_money else count),
        metavar="USD" if is_money else "N",
        help="'none' is without limit.",
        show_default=False,
    )
    return Annotated[Capacity | None, option]
