"""Arguments and options that several commands share, and how their texts are read."""

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Final, TypeAlias

import typer

from controlplane.cli.durations import past_instant
from controlplane.cli.output import Format
from controlplane.cli.typer_apps import reader

if TYPE_CHECKING:
    from google.protobuf.timestamp_pb2 import Timestamp

# How command lines write that there is no tier; `tier create` does not take it for a name.
NO_TIER: Final = "none"


def past(text: str) -> datetime:
    """Read a date, a time, or how long ago."""
    return past_instant(text, datetime.now(UTC))


def tier_name(text: str) -> str:
    """Read a tier's name; `none` is no tier, which the contract writes as an empty name."""
    return "" if text == NO_TIER else text


Output: TypeAlias = Annotated[
    Format, typer.Option("--output", "-o", help="How data is printed on stdout.", show_default=True)
]
Name: TypeAlias = Annotated[str, typer.Argument(help="Its name.", show_default=False)]
Force: TypeAlias = Annotated[
    bool, typer.Option("--force", help="Also what it owns and what refers to it.")
]
OfOrganization: TypeAlias = Annotated[
    str, typer.Option("--org", help="Only of this organization.", show_default=False)
]
OfUser: TypeAlias = Annotated[
    str, typer.Option("--user", help="Only of this user: acme/alice.", show_default=False)
]
OfKey: TypeAlias = Annotated[
    str, typer.Option("--key", help="Only of this key: acme/alice/laptop.", show_default=False)
]
OfModel: TypeAlias = Annotated[
    str, typer.Option("--model", help="Only of this model.", show_default=False)
]
Since: TypeAlias = Annotated[
    datetime | None,
    typer.Option(
        "--since",
        parser=reader(past),
        metavar="TIME",
        help="From then on: 2026-01-31, an ISO 8601 time, or 24h for that long ago. UTC.",
    ),
]
Until: TypeAlias = Annotated[
    datetime | None,
    typer.Option("--until", parser=reader(past), metavar="TIME", help="Before then, likewise."),
]
OfTier: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--tier",
        parser=tier_name,
        metavar="TIER",
        help="Whose limits it has where it has none of its own, in place of its user's; "
        "'none' for its user's.",
        show_default=False,
    ),
]
Models: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        "--models",
        metavar="PATTERN",
        help="Models, '*' matching any run of characters; repeat it or use commas.",
    ),
]


def words(texts: Iterable[str] | None) -> list[str]:
    """Return the words of an option that may be repeated and may hold commas, in order."""
    return [
        word for text in texts or () for word in (part.strip() for part in text.split(",")) if word
    ]


def timestamp_of(instant: datetime | None) -> "Timestamp | None":
    """Return an instant as the contract writes it."""
    if instant is None:
        return None
    from google.protobuf.timestamp_pb2 import Timestamp

    timestamp = Timestamp()
    timestamp.FromDatetime(instant)
    return timestamp


def require_changes(*given: Sequence[object]) -> None:
    """Refuse an update that would change nothing.

    Raises:
        BadParameter: All are empty, which is wrong usage.
    """
    if not any(given):
        raise typer.BadParameter("give at least one option that changes something")
