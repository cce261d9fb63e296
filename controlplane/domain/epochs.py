"""Config epochs: which database revisions belong to. A later one is greater, as text.

t<milliseconds since 1970 in 12 hexadecimal digits>-<12 random hexadecimal digits>
"""

import re
from datetime import datetime
from typing import Final

_FORM: Final = re.compile(r"t[0-9a-f]{12}-[0-9a-f]{12}")
_RANDOM_BYTES: Final = 6
_LONGEST_MS: Final = (1 << 48) - 1


def new_epoch(now: datetime, random: bytes, after: str = "") -> str:
    """Return an epoch that began at `now`, greater than the epoch `after` even if the clock went back.

    Args:
        now: An aware instant.
        random: 6 random bytes.
        after: The epoch before; one of another form, or none, is smaller than any.
    """
    at_ms = int(now.timestamp() * 1000)
    if is_epoch(after):
        at_ms = max(at_ms, int(after[1:13], 16) + 1)
    return f"t{min(at_ms, _LONGEST_MS):012x}-{random[:_RANDOM_BYTES].hex()}"


def is_epoch(text: str) -> bool:
    """Say whether `text` has the form of an epoch."""
    return _FORM.fullmatch(text) is not None
