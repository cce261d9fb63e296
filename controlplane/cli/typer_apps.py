"""How the program's commands look: groups, examples, and options with a syntax of their own."""

from collections.abc import Callable
from typing import TypeVar

import typer

_Value = TypeVar("_Value")


def new_app(description: str) -> typer.Typer:
    """Return an empty group of commands.

    Help is plain text: drawing it with rich would load its Markdown and highlighting parts, a third of a second for
    each `--help`. Failures print no local variables, which may hold secrets.
    """
    return typer.Typer(
        help=description,
        no_args_is_help=True,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    )


def example(*lines: str) -> str:
    """Return the end of a command's help: its examples, one a line, kept as they are.

    Lines are without `tollkeeper `, which all begin with; one that pipes into the program is given whole, with a `|`.
    """
    shown = [line if "|" in line else f"tollkeeper {line}" for line in lines]
    # Click keeps the line breaks of a paragraph that begins with a backspace.
    return "\b\nExample:\n" + "\n".join(f"  {line}" for line in shown)


def reader(read: Callable[[str], _Value]) -> Callable[[str], _Value]:
    """Return a parser for an option: what `read` refuses by a `ValueError` is wrong usage, in its words."""

    def parse(text: str) -> _Value:
        try:
            return read(text)
        except ValueError as error:
            raise typer.BadParameter(str(error)) from None

    return parse
