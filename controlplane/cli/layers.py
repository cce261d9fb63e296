"""The flags that set limits: one for each unit and window, the same for every noun that has limits."""

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Final

import typer

from controlplane.cli.capacities import Capacity, budget, count
from controlplane.cli.durations import text_of_ms
from controlplane.cli.flags import flag, with_flags
from controlplane.cli.money import usd_from_nanousd
from controlplane.cli.plain import Record, record_of
from controlplane.cli.rates import pop_rate, rate_parameters
from controlplane.cli.typer_apps import reader

if TYPE_CHECKING:
    from tollkeeper.common.v1.limits_pb2 import Limit


@dataclass(frozen=True, slots=True)
class Layer:
    """A unit and a window, and what people call them."""

    unit: str
    window: str
    flags: tuple[str, ...]


class LayerName(StrEnum):
    """A layer, by the name that `--only` takes: that of its flag, but for the rate, which has several."""

    REQUESTS_RATE = "requests-rate"
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
    LayerName.REQUESTS_RATE: Layer("REQUESTS", "RATE", ()),
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

BUDGETS: Final = tuple(name for name, layer in LAYERS.items() if layer.unit == "SPEND")
"""The layers of money."""


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
        require_modified(self.capacities, soft=self.soft, shadow=self.shadow)
        return [
            limit_of(name, capacity, soft=self.soft, shadow=self.shadow)
            for name, capacity in self.capacities.items()
        ]

    def required(self) -> "list[Limit]":
        """Return them likewise, at least one.

        Raises:
            BadParameter: None is given, or as above.
        """
        limits = self.limits()
        if not limits:
            raise typer.BadParameter("give at least one limit: the help lists them")
        return limits


def require_modified(names: Iterable[LayerName], *, soft: bool, shadow: bool) -> None:
    """Refuse `--soft` and `--shadow` where nothing is given that they would change.

    Raises:
        BadParameter: `--soft` without a budget or `--shadow` without a limit, which is wrong usage.
    """
    units = {LAYERS[name].unit for name in names}
    if soft and "SPEND" not in units:
        raise typer.BadParameter("--soft is for budgets: give one beside it")
    if shadow and not units:
        raise typer.BadParameter("--shadow is for limits: give one beside it")


def limit_of(name: LayerName, capacity: Capacity, *, soft: bool, shadow: bool) -> "Limit":
    """Return a layer as the contract writes it; only budgets are ever soft."""
    limit = empty_limit(name)
    limit.capacity = capacity.amount or 0
    limit.unlimited = capacity.amount is None
    limit.soft = soft and LAYERS[name].unit == "SPEND"
    limit.shadow = shadow
    limit.every_ms = capacity.every_ms
    limit.burst = capacity.burst
    return limit


def empty_limit(name: LayerName) -> "Limit":
    """Return a limit of that unit and window, which name a layer."""
    from tollkeeper.common.v1.limits_pb2 import Limit, LimitUnit, LimitWindow

    layer = LAYERS[name]
    return Limit(
        unit=LimitUnit.Value(f"LIMIT_UNIT_{layer.unit}"),
        window=LimitWindow.Value(f"LIMIT_WINDOW_{layer.window}"),
    )


def takes_layers(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the flags of all layers, which it receives together as the argument `layers`."""
    return _taking(command, LayerName)


def takes_budgets(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the flags of the layers of money, which it receives together as the argument `layers`."""
    return _taking(command, BUDGETS)


def _taking(command: Callable[..., None], names: Iterable[LayerName]) -> Callable[..., None]:
    def collect(arguments: dict[str, object]) -> GivenLayers:
        return GivenLayers(
            pop_capacities(arguments, names=names),
            bool(arguments.pop("soft")),
            bool(arguments.pop("shadow")),
        )

    flags = [*layer_parameters(names=names), *modifier_parameters()]
    return with_flags(command, "layers", flags, collect)


def layer_parameters(
    prefix: str = "", names: Iterable[LayerName] = LayerName
) -> list[inspect.Parameter]:
    """Return the flags of layers, their names after a prefix: `device-` makes `--device-requests-per-day`."""
    parameters = []
    for name in names:
        if name is LayerName.REQUESTS_RATE:
            parameters += rate_parameters(prefix)
        else:
            parameters.append(flag(_argument(prefix, name), _option(LAYERS[name], prefix)))
    return parameters


def pop_capacities(
    arguments: dict[str, object], prefix: str = "", names: Iterable[LayerName] = LayerName
) -> dict[LayerName, Capacity]:
    """Take the values of the flags with that prefix out of a call's arguments; return those that were given.

    Raises:
        BadParameter: The flags of a rate do not make one together, which is wrong usage.
    """
    capacities: dict[LayerName, Capacity] = {}
    for name in names:
        if name is LayerName.REQUESTS_RATE:
            capacity: object = pop_rate(arguments, prefix)
        else:
            capacity = arguments.pop(_argument(prefix, name))
        if isinstance(capacity, Capacity):
            capacities[name] = capacity
    return capacities


def modifier_parameters() -> list[inspect.Parameter]:
    """Return the flags `--soft` and `--shadow`, which go for all layers of a command line."""
    soft = Annotated[
        bool, typer.Option("--soft", help="Budgets reserve what is expected, not the upper bound.")
    ]
    shadow = Annotated[bool, typer.Option("--shadow", help="Count and show, but never refuse.")]
    return [flag("soft", soft, False), flag("shadow", shadow, False)]


def limit_row(limit: "Limit") -> Record:
    """Return a limit for a table, its capacity in words where the number alone says too little."""
    row = record_of(limit)
    if limit.unlimited:
        row["capacity"] = "unlimited"
    elif row["unit"] == "spend":
        row["capacity"] = f"{usd_from_nanousd(limit.capacity)} USD"
    elif row["window"] == "rate":
        at_once = f", {limit.burst} at once" if limit.burst else ""
        row["capacity"] = f"{limit.capacity} every {text_of_ms(limit.every_ms)}{at_once}"
    return row


def _argument(prefix: str, name: LayerName) -> str:
    return f"{prefix}{name}".replace("-", "_")


def _option(layer: Layer, prefix: str) -> object:
    is_money = layer.unit == "SPEND"
    option = typer.Option(
        *(f"--{prefix}{flag.removeprefix('--')}" for flag in layer.flags),
        parser=reader(budget if is_money else count),
        metavar="USD" if is_money else "N",
        help="'none' is without limit.",
        show_default=False,
    )
    return Annotated[Capacity | None, option]
