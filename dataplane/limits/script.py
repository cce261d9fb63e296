"""The limiter's script: `scripts/*.lua` assembled to one text, called by its hash."""

import re
from dataclasses import dataclass
from functools import cache
from hashlib import sha1
from importlib.resources import files
from typing import Final

from dataplane.domain.limiting import NEVER_MS
from dataplane.domain.periods import FOREVER_MS
from dataplane.limits import counters
from dataplane.limits.marks import CREDENTIAL_PLACE, MARK_FIELDS
from dataplane.limits.operations import HELD, LOST, NO_FENCE, REAPED, Outcome, Verb

_COMMON_PARTS: Final = ("counters", "admit", "settle", "release", "heartbeat")
# Made only when a batch has one of them: a function that is made in every call costs every call.
_RARE_PARTS: Final = ("mark", "inspect", "extend", "cancel", "reap", "maintain")
# What may stand for something else than a constant is matched, too, and left alone.
_NAME: Final = re.compile(r'"[^"\n]*"|--[^\n]*|\b[A-Z][A-Z_]*\b')

_CONSTANTS: Final[dict[str, int | str]] = {
    "CLOCK_KEY": 1,
    "EPOCH_KEY": 2,
    "LEASES_KEY": 3,
    "REAPED_KEY": 4,
    "EPOCH_ARGUMENT": 1,
    "BATCH_ARGUMENT": 2,
    "CALLERS_ARGUMENT": 3,
    # Of a caller's marks.
    "CREDENTIAL_PLACE": CREDENTIAL_PLACE,
    "MARK_FIELDS": MARK_FIELDS,
    "LAYER_FIELDS": counters.LAYER_FIELDS,
    "COUNTER_FIELDS": counters.COUNTER_FIELDS,
    "SLOTS": counters.SLOTS,
    "LEASE_MS": counters.LEASE_MS,
    "SLOT_GRACE_MS": counters.SLOT_GRACE_MS,
    "REAPED_MS": counters.REAPED_MS,
    "UNREPORTED_MS": counters.UNREPORTED_MS,
    "TOMBSTONE_MS": counters.TOMBSTONE_MS,
    "MARK_MS": counters.MARK_MS,
    "PERIOD_GRACE_MS": counters.PERIOD_GRACE_MS,
    "FOREVER_MS": FOREVER_MS,
    "NEVER": NEVER_MS,
    "NO_FENCE": NO_FENCE,
    "ROLLING_REQUESTS": counters.ROLLING_REQUESTS,
    "ROLLING_TOKENS": counters.ROLLING_TOKENS,
    "PERIOD_REQUESTS": counters.PERIOD_REQUESTS,
    "PERIOD_TOKENS": counters.PERIOD_TOKENS,
    "SPEND": counters.SPEND,
    "SOFT_SPEND": counters.SOFT_SPEND,
    "PARALLEL": counters.PARALLEL,
    "RATE": counters.RATE,
    # No record reads like this: a packed array never begins with a letter.
    "TOMBSTONE": "released",
    "HELD": HELD,
    "REAPED": REAPED,
    "LOST": LOST,
    # A record: {state, counter epoch, admitted at, nexts, pairs packed, counters, meta}.
    "RECORD_STATE": 1,
    "RECORD_EPOCH": 2,
    "RECORD_ADMITTED": 3,
    "RECORD_NEXTS": 4,
    "RECORD_PAIRS": 5,
    "RECORD_COUNTERS": 6,
    "RECORD_META": 7,
    **{each.name: int(each) for each in Verb},
    **{each.name: int(each) for each in Outcome},
}


@dataclass(frozen=True, slots=True)
class Script:
    """A script and the name under which a server remembers it."""

    text: str
    digest: str

    @classmethod
    def of(cls, text: str) -> "Script":
        """Return `text` with its digest."""
        # The protocol names scripts by SHA-1; nothing here relies on its strength.
        return cls(text=text, digest=sha1(text.encode(), usedforsecurity=False).hexdigest())


@cache
def limiter_script() -> Script:
    """Return the script that production runs."""
    return assemble(clock=_read("clock"))


def assemble(clock: str) -> Script:
    """Return the script with `clock` as its source of time.

    Args:
        clock: Lua text that defines `server_clock_ms()`. Tests bring their own; nothing
            else differs from what production runs.
    """
    return compiled(source(clock))


def source(clock: str) -> str:
    """Return the text of the script as it is written, with the names of its constants."""
    return "\n".join(
        [
            clock,
            *(_read(part) for part in _COMMON_PARTS),
            "local function define_rare_operations()",
            *(_read(part) for part in _RARE_PARTS),
            "end",
            _read("run"),
        ]
    )


def compiled(text: str) -> Script:
    """Return a source as the script that runs: values stand in the place of constants.

    As local variables they would cost every call: each function that uses one looks for it among
    all the others when it is made, and it may use no more than 60.
    """
    return Script.of(_NAME.sub(_value, text))


def _value(match: re.Match[str]) -> str:
    value = _CONSTANTS.get(match[0])
    if value is None:
        return match[0]
    # In brackets, because two minus signs in a row begin a comment.
    return f'"{value}"' if isinstance(value, str) else f"{value}" if value >= 0 else f"({value})"


def _read(name: str) -> str:
    return (files("dataplane.limits") / "scripts" / f"{name}.lua").read_text(encoding="utf-8")
