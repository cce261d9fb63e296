"""The flags that say whom a limit counts: `--user acme/alice`, `--global`; the same for every noun that has limits."""

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Annotated, Final

import typer

from controlplane.cli.flags import flag, with_flags


@dataclass(frozen=True, slots=True)
class Subject:
    """Whom a limit counts, as the contract writes it: `user:acme/alice`, `global`; a tier is one for the program only."""

    kind: str
    name: str = ""

    def __str__(self) -> str:
        return f"{self.kind}:{self.name}" if self.name else self.kind

    @property
    def tier(self) -> str | None:
        """The tier's name, whose limits are those of each of its users; None of all others."""
        return self.name if self.kind == _TIER else None


_TIER: Final = "tier"
_GLOBAL: Final = "global"
# The flag, the contract's word, the value's name, and what is said of it.
_KINDS: Final = (
    ("user", "user", None, "Of this user: acme/alice."),
    ("org", "organization", None, "Of this organization: acme."),
    ("key", "key", None, "Of this key: acme/alice/laptop."),
    ("device", "device", "ID", "Of this device, by its id."),
    ("ip", "ip", "ADDRESS", "Of this client address; of IPv6, of the /64 it is in."),
    ("endpoint", "endpoint", "CLASS", "Of this endpoint class, service-wide: chat, embeddings."),
    ("model", "model", None, "Of this model, service-wide, by the name its provider is asked for."),
)
_OF_TIERS: Final = ("tier", _TIER, None, "Of each user of this tier: free, paid.")


def takes_subject(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the flags that name a subject, which it receives as the argument `subject`; one must be given."""
    return _taking(command, _KINDS, is_required=True)


def takes_subject_or_tier(command: Callable[..., None]) -> Callable[..., None]:
    """Do so, and let it be a tier."""
    return _taking(command, (*_KINDS, _OF_TIERS), is_required=True)


def may_take_subject(command: Callable[..., None]) -> Callable[..., None]:
    """Do so without a tier, and let none be given: the argument is None then."""
    return _taking(command, _KINDS, is_required=False)


def _taking(
    command: Callable[..., None],
    kinds: Iterable[tuple[str, str, str | None, str]],
    *,
    is_required: bool,
) -> Callable[..., None]:
    def collect(arguments: dict[str, object]) -> Subject | None:
        found = []
        for name, kind, _, _ in kinds:
            given = arguments.pop(_argument(name))
            if given is not None:
                found.append(Subject(kind, _named(str(given), name)))
        if arguments.pop(_argument(_GLOBAL)):
            found.append(Subject(_GLOBAL))
        if len(found) > 1 or (is_required and not found):
            listed = ", ".join(f"--{name}" for name, *_ in kinds)
            count = "exactly" if is_required else "at most"
            raise typer.BadParameter(f"give {count} one of {listed} and --{_GLOBAL}")
        return found[0] if found else None

    return with_flags(command, "subject", [*map(_flag, kinds), _global_flag()], collect)


def _named(text: str, name: str) -> str:
    if not text:
        raise typer.BadParameter(f"--{name} needs a name")
    return text


def _flag(kind: tuple[str, str, str | None, str]) -> inspect.Parameter:
    name, _, metavar, text = kind
    option = typer.Option(f"--{name}", metavar=metavar, help=text, show_default=False)
    return flag(_argument(name), Annotated[str | None, option])


def _global_flag() -> inspect.Parameter:
    option = typer.Option(f"--{_GLOBAL}", help="Of the whole service.")
    return flag(_argument(_GLOBAL), Annotated[bool, option], False)


def _argument(name: str) -> str:
    # `global` is a word of the language.
    return f"of_{name}"
