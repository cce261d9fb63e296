"""What commands print: data on stdout in the format that was asked for, all else on stderr."""

import json
import sys
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, NoReturn

import typer

from controlplane.cli.money import usd_from_nanousd
from controlplane.cli.plain import Plain, Record, record_of
from controlplane.cli.waiting import propagation_fields

if TYPE_CHECKING:
    from google.protobuf.message import Message
    from rich.table import Table


class Format(StrEnum):
    """In which form data is printed. Never guessed from the terminal."""

    TABLE = "table"
    JSON = "json"
    YAML = "yaml"


def note(sentence: str) -> None:
    """Tell the user something that is not data, as one line on stderr."""
    typer.echo(one_line(sentence), err=True)


def fail(sentence: str) -> NoReturn:
    """Say on stderr why the command failed, as one line, and end it with exit code 1."""
    note(sentence)
    raise typer.Exit(1)


def print_one(item: "Message | Record", output: Format) -> None:
    """Print one thing: an object, or a table of its fields.

    An object also says which data planes have applied the change that it came from, where the command waited for them.
    """
    record = _record(item)
    if output is not Format.TABLE:
        record = {**record, **propagation_fields()}
    match output:
        case Format.JSON:
            typer.echo(json.dumps(record, indent=2))
        case Format.YAML:
            typer.echo(_yaml(record), nl=False)
        case Format.TABLE:
            table = _new_table(["field", "value"])
            for name, value in record.items():
                table.add_row(*_cells([_heading(name), _shown(name, value)]))
            _print_table(table)


def print_many(items: "Iterable[Message | Record]", output: Format, columns: Sequence[str]) -> None:
    """Print a list: an array, or a table of the given fields.

    JSON and YAML are written as the items arrive, so that a ledger of any length fits; nothing is written before the
    first one is there. When a later page fails the document is left unfinished, and the exit code says so.
    """
    records = _started(_record(item) for item in items)
    match output:
        case Format.JSON:
            _print_array(records)
        case Format.YAML:
            _print_sequence(records)
        case Format.TABLE:
            table = _new_table([_heading(column) for column in columns])
            for record in records:
                table.add_row(*_cells([_shown(column, record.get(column)) for column in columns]))
            _print_table(table)


def one_line(text: str) -> str:
    """Return a text from elsewhere as one line that a terminal does not obey: control characters become spaces."""
    return " ".join(printable(text).split())


def printable(text: str, keep: str = "") -> str:
    """Return a text with each control character, but for those to keep, as a space."""
    return "".join(
        c if c in keep or unicodedata.category(c) not in ("Cc", "Cf") else " " for c in text
    )


def _record(item: "Message | Record") -> Record:
    return item if isinstance(item, dict) else record_of(item)


def _started(records: Iterator[Record]) -> Iterator[Record]:
    """Fetch the first record now: a refusal then finds stdout still empty."""
    missing: Record = {}
    first = next(records, missing)

    def all_records() -> Iterator[Record]:
        if first is not missing:
            yield first
            yield from records

    return all_records()


def _print_array(records: Iterable[Record]) -> None:
    separator = "["
    for record in records:
        typer.echo(f"{separator}\n{json.dumps(record)}", nl=False)
        separator = ","
    typer.echo("[]" if separator == "[" else "\n]")


def _print_sequence(records: Iterable[Record]) -> None:
    is_empty = True
    for record in records:
        is_empty = False
        typer.echo(_yaml([record]), nl=False)
    if is_empty:
        typer.echo("[]")


def _yaml(value: Record | list[Record]) -> str:
    import yaml

    return yaml.safe_dump(value, sort_keys=False)


def _heading(name: str) -> str:
    return name.removesuffix("_nanousd") + "_usd" if name.endswith("_nanousd") else name


def _shown(name: str, value: Plain) -> str:
    if value is None or value in ("", [], {}):
        return "-"
    match value:
        case bool():
            return "yes" if value else "no"
        case int() if name.endswith("_nanousd"):
            return usd_from_nanousd(value)
        case list() if all(isinstance(item, str | int) for item in value):
            return ", ".join(str(item) for item in value)
        case list() | dict():
            return json.dumps(value)
        case _:
            return str(value)


def _cells(texts: Iterable[str]) -> list[str]:
    from rich.markup import escape

    return [escape(one_line(text)) for text in texts]


def _new_table(headings: Sequence[str]) -> "Table":
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for heading in headings:
        table.add_column(heading, overflow="fold")
    return table


def _print_table(table: "Table") -> None:
    from rich.console import Console
    from rich.measure import Measurement

    console = Console(file=sys.stdout, highlight=False, emoji=False)
    if not console.is_terminal:
        # A file or a pipe has no width: nothing is folded there.
        wide = console.options.update(width=1_000_000)
        console.width = Measurement.get(console, wide, table).maximum
    console.print(table)
