"""The limiter's script: `scripts/*.lua` assembled to one text, called by its hash."""

from dataclasses import dataclass
from functools import cache
from hashlib import sha1
from importlib.resources import files
from typing import Final

from dataplane.domain.limiting import NEVER_MS
from dataplane.domain.periods import FOREVER_MS
from dataplane.limits import counters
from dataplane.limits.operations import Outcome, Verb

_PARTS: Final = (
    "counters",
    "admit",
    "settle",
    "release",
    "reap",
    "heartbeat",
    "inspect",
    "run",
)

_CONSTANTS: Final[dict[str, int | str]] = {
    "CLOCK_KEY": 1,
    "EPOCH_KEY": 2,
    "LEASES_KEY": 3,
    "EPOCH_ARGUMENT": 1,
    "BATCH_ARGUMENT": 2,
    "SLOTS": counters.SLOTS,
    "LEASE_MS": counters.LEASE_MS,
    "RESERVATION_MS": counters.RESERVATION_MS,
    "REAPED_MS": counters.REAPED_MS,
    "TOMBSTONE_MS": counters.TOMBSTONE_MS,
    "PERIOD_GRACE_MS": counters.PERIOD_GRACE_MS,
    "FOREVER_MS": FOREVER_MS,
    "NEVER": NEVER_MS,
    "ROLLING_REQUESTS": counters.ROLLING_REQUESTS,
    "ROLLING_TOKENS": counters.ROLLING_TOKENS,
    "PERIOD_REQUESTS": counters.PERIOD_REQUESTS,
    "PERIOD_TOKENS": counters.PERIOD_TOKENS,
    "SPEND": counters.SPEND,
    "PARALLEL": counters.PARALLEL,
    # No record reads like this: a packed array never begins with a letter.
    "TOMBSTONE": "released",
    "HELD": 1,
    "REAPED": 2,
    # A record: {state, counter epoch, admitted at, nexts, pairs, counters, meta}.
    "RECORD_STATE": 1,
    "RECORD_EPOCH": 2,
    "RECORD_ADMITTED": 3,
    "RECORD_NEXTS": 4,
    "RECORD_PAIRS": 5,
    "RECORD_COUNTERS": 6,
    "RECORD_META": 7,
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
    names = {
        **_CONSTANTS,
        **{each.name: int(each) for each in Verb},
        **{each.name: int(each) for each in Outcome},
    }
    body = "\n".join([clock, *(_read(part) for part in _PARTS)])
    constants = (
        f"local {name} = {value!r}" if isinstance(value, str) else f"local {name} = {value}"
        for name, value in names.items()
    )
    return Script.of("\n".join([*constants, body]))


def _read(name: str) -> str:
    return (files("dataplane.limits") / "scripts" / f"{name}.lua").read_text(encoding="utf-8")
