"""US dollars as people write them, and nano-USD as the service counts them. No float is involved."""

import re
from decimal import Decimal
from typing import Final

NANOUSD_PER_USD: Final = 1_000_000_000
# No amount of the admin API may be larger: the most that a spend limit takes, exact in a double.
MOST_NANOUSD: Final = 9_000_000_000_000_000

_USD: Final = re.compile(r"[0-9]{1,12}(?:\.[0-9]+)?", re.ASCII)
_DECIMALS: Final = 9


def nanousd_from_usd(text: str) -> int:
    """Return the nano-USD of a decimal amount of US dollars, exactly.

    Raises:
        ValueError: Not a plain decimal number, more than 9 decimals, or above 9,000,000 USD.
    """
    if not _USD.fullmatch(text):
        raise ValueError(f"{text!r} is not an amount of US dollars such as 0.15 or 100")
    _, _, decimals = text.partition(".")
    if len(decimals) > _DECIMALS:
        raise ValueError(f"{text!r} has more than {_DECIMALS} decimals")
    nanousd = int(Decimal(text).scaleb(_DECIMALS))
    if nanousd > MOST_NANOUSD:
        raise ValueError(f"{text!r} is more than 9000000 USD")
    return nanousd


def usd_from_nanousd(nanousd: int) -> str:
    """Return US dollars as a plain decimal number, with at least two decimals and no more than it needs."""
    sign = "-" if nanousd < 0 else ""
    whole, rest = divmod(abs(nanousd), NANOUSD_PER_USD)
    decimals = f"{rest:09d}".rstrip("0").ljust(2, "0")
    return f"{sign}{whole}.{decimals}"
