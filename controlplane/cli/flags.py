"""Flags that several commands have, which a command receives together as one argument."""

import functools
import inspect
from collections.abc import Callable, Iterable


def with_flags(
    command: Callable[..., None],
    argument: str,
    flags: Iterable[inspect.Parameter],
    collect: Callable[[dict[str, object]], object],
) -> Callable[..., None]:
    """Give a command more flags, which it receives together as that argument.

    `collect` takes the flags' values out of all arguments of a call and returns what they mean together.
    """

    @functools.wraps(command)
    def run(**arguments: object) -> None:
        collected = collect(arguments)
        command(**arguments, **{argument: collected})

    signature = inspect.signature(command)
    own = [parameter for parameter in signature.parameters.values() if parameter.name != argument]
    # Typer reads a command's flags from its signature.
    run.__signature__ = signature.replace(parameters=[*own, *flags])  # type: ignore[attr-defined]  # any function may have one
    return run


def flag(name: str, annotation: object, default: object = None) -> inspect.Parameter:
    """Return a flag; `name` is what `collect` finds its value under."""
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation
    )
