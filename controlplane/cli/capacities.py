"""How much a layer admits, as people write it on a command line."""

from dataclasses import dataclass
from typing import Final

from controlplane.cli.money import nanousd_from_usd

# As far as the contract lets counters go.
_MOST_COUNTED: Final = 1_000_000_000_000_000


@dataclass(frozen=True, slots=True)
class Capacity:
    """How much a layer admits, in its unit; None means without limit.

    Of a rate, `every_ms` are the milliseconds in which so many pass, and `burst` is how many may come at once after a
    pause, 0 for as many as pass in that time.
    """

    amount: int | None
    every_ms: int = 0
    burst: int = 0


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
