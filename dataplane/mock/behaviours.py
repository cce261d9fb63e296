"""What a model name asks the mock provider to do.

`mock-` is followed by parts in any order, each at most once: `mock-tokens-64-pace-20`. Any name that
does not start with `mock` echoes, so that a router can send every model here.
"""

import re
from dataclasses import dataclass
from functools import lru_cache

MAX_TOKENS = 1_000_000
MAX_DELAY_MS = 3_600_000
MAX_EVENTS = 10_000_000

_PREFIX = "mock"
_FLAGS = frozenset({"echo", "hang", "no-usage"})
# part -> (smallest, largest) value
_NUMBERS = {
    "tokens": (0, MAX_TOKENS),
    "slow": (0, MAX_DELAY_MS),
    "pace": (0, MAX_DELAY_MS),
    "status": (400, 599),
    "cut": (0, MAX_EVENTS),
}
_PART = re.compile(r"-(?:(no-usage|[a-z]+)(?:-([0-9]{1,8}))?)(?=-|\Z)", re.ASCII)


class UnknownModelError(ValueError):
    """The model name has a part that the mock provider does not know."""


@dataclass(frozen=True, slots=True)
class Behaviour:
    """How one call is answered; the defaults echo at once.

    Attributes:
        tokens: Tokens of the answer; None echoes the last user message.
        slow_ms: Wait before the first token.
        pace_ms: Wait before every token.
        status: The HTTP error to answer with, 400 to 599.
        hangs: The call is accepted and never answered.
        cut_events: The connection closes after this many events of a stream, or in the middle of
            a JSON answer.
        reports_usage: The answer carries usage figures.
    """

    tokens: int | None = None
    slow_ms: int = 0
    pace_ms: int = 0
    status: int | None = None
    hangs: bool = False
    cut_events: int | None = None
    reports_usage: bool = True


@lru_cache(maxsize=1024)
def behaviour_of(model: str) -> Behaviour:
    """Return what `model` asks for.

    Raises:
        UnknownModelError: A part is unknown, out of bounds, given twice, or contradicts another.
    """
    if not model.startswith(_PREFIX):
        return Behaviour()
    parts = _parts_of(model)
    if "echo" in parts and "tokens" in parts:
        raise UnknownModelError(f"The model `{model}` cannot both echo and count tokens.")
    return Behaviour(
        tokens=parts.get("tokens"),
        slow_ms=parts.get("slow") or 0,
        pace_ms=parts.get("pace") or 0,
        status=parts.get("status"),
        hangs="hang" in parts,
        cut_events=parts.get("cut"),
        reports_usage="no-usage" not in parts,
    )


def _parts_of(model: str) -> dict[str, int | None]:
    """Return the parts of `model` with their values; None for a part that takes none."""
    parts: dict[str, int | None] = {}
    position = len(_PREFIX)
    while position < len(model):
        match = _PART.match(model, position)
        if match is None or match[1] in parts:
            raise _unknown(model)
        parts[match[1]] = _value_of(model, match[1], match[2])
        position = match.end()
    if not parts:
        raise _unknown(model)
    return parts


def _value_of(model: str, part: str, digits: str | None) -> int | None:
    if part in _FLAGS and digits is None:
        return None
    if part not in _NUMBERS or digits is None:
        raise _unknown(model)
    smallest, largest = _NUMBERS[part]
    if not smallest <= int(digits) <= largest:
        raise _unknown(model)
    return int(digits)


def _unknown(model: str) -> UnknownModelError:
    return UnknownModelError(f"The model `{model}` does not exist.")
