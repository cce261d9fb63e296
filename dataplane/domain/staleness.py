"""How old a configuration is that a data plane serves: it serves it all the same.

FRESH: a control plane was heard within three heartbeats, and knows of nothing newer. STALE: not so. EXPIRED: no control
plane was heard for a day. Nobody is refused for that: keys that were revoked meanwhile are known from Redis, and what an
operator must do is to look after the control plane, not to be without answers.
"""

from enum import StrEnum
from typing import Final

FRESH_MS: Final = 15_000
EXPIRES_MS: Final = 24 * 3_600_000


class Staleness(StrEnum):
    """How old what is served is, in the order of its age."""

    FRESH = "fresh"
    STALE = "stale"
    EXPIRED = "expired"


def staleness_of(unheard_ms: int, *, is_newest: bool) -> Staleness:
    """Return how old a configuration is.

    Args:
        unheard_ms: For how long no control plane was heard; for as long as the process runs where none ever was.
        is_newest: It is the newest of which any control plane told.
    """
    if unheard_ms >= EXPIRES_MS:
        return Staleness.EXPIRED
    if unheard_ms >= FRESH_MS or not is_newest:
        return Staleness.STALE
    return Staleness.FRESH
