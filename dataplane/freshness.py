"""How fresh the configuration is, by what the stream heard; says so in the log when it has expired."""

import asyncio
import time
from collections.abc import Callable
from typing import Final, Protocol

import structlog

from dataplane.domain.snapshot import Position, Snapshot
from dataplane.domain.staleness import EXPIRES_MS, Staleness, staleness_of

# Loud enough for whoever reads logs, and no flood.
REMINDER_SECONDS: Final = 3600.0
# Within the heartbeats of a control plane, so that none is missed.
_LOOK_SECONDS: Final = 1.0

_log = structlog.get_logger(__name__)


class StreamView(Protocol):
    """What the configuration stream tells of itself."""

    @property
    def is_connected(self) -> bool:
        """A control plane said Welcome on a stream that is open."""
        ...

    @property
    def control_plane_id(self) -> str:
        """Which one, last; empty before the first."""
        ...

    @property
    def heard_at(self) -> float | None:
        """When a control plane was last heard, by the clock of `Freshness`; None: never."""
        ...

    @property
    def known_epoch(self) -> str:
        """The epoch of the newest position that a control plane told of; empty before the first."""
        ...

    @property
    def known_revision(self) -> int:
        """Its revision."""
        ...

    @property
    def quarantined(self) -> int:
        """Leaves that are set aside now."""
        ...


class Freshness:
    """Looks at the stream and at what is in force; one for a process.

    Args:
        stream: What the stream heard.
        latest: The snapshot in force, or None.
        monotonic: The clock of `heard_at`, in seconds.
    """

    def __init__(
        self,
        stream: StreamView,
        latest: Callable[[], Snapshot | None],
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.stream = stream
        self._latest = latest
        self._monotonic = monotonic
        self._began_at = monotonic()
        self._reminded_at: float | None = None
        self._confirmed_at: float | None = None

    @property
    def confirmed_seconds_ago(self) -> float | None:
        """When a control plane was last heard while it knew of nothing newer than what is in force; None: never.

        Equal revisions of an epoch have equal content: the digest is checked before anything is put in force.
        """
        self._note_confirmation()
        if self._confirmed_at is None:
            return None
        return max(0.0, self._monotonic() - self._confirmed_at)

    @property
    def heard_ms_ago(self) -> int | None:
        """When a control plane was heard last; None: not by this process."""
        heard_at = self.stream.heard_at
        return None if heard_at is None else self._ms_since(heard_at)

    @property
    def staleness(self) -> Staleness:
        """How old what is served is; of nothing at all, how long a control plane was not heard."""
        heard_ms_ago = self.heard_ms_ago
        unheard_ms = self._ms_since(self._began_at) if heard_ms_ago is None else heard_ms_ago
        latest = self._latest()
        return staleness_of(
            unheard_ms, is_newest=latest is None or self._is_newest(latest.position)
        )

    async def run(self) -> None:
        """Look once a second, and say once an hour that the configuration has expired; until cancelled."""
        while True:
            self._note_confirmation()
            self.remind()
            await asyncio.sleep(_LOOK_SECONDS)

    def remind(self) -> None:
        """Say that the configuration has expired, if it has and that was not said within the hour."""
        now, latest = self._monotonic(), self._latest()
        if latest is None or self.staleness is not Staleness.EXPIRED:
            self._reminded_at = None
            return
        if self._reminded_at is not None and now - self._reminded_at < REMINDER_SECONDS:
            return
        self._reminded_at = now
        _log.error(
            "configuration_expired",
            revision=latest.position.revision,
            heard_hours_ago=(self.heard_ms_ago or self._ms_since(self._began_at)) // 3_600_000,
            expires_after_hours=EXPIRES_MS // 3_600_000,
            effect="it is served all the same",
        )

    def _note_confirmation(self) -> None:
        latest, heard_at = self._latest(), self.stream.heard_at
        if latest is None or heard_at is None or not self.stream.known_epoch:
            return
        if self._is_newest(latest.position):
            self._confirmed_at = heard_at

    def _is_newest(self, position: Position) -> bool:
        stream = self.stream
        if not stream.known_epoch:
            return True
        is_same = stream.known_epoch == position.config_epoch
        return is_same and position.revision >= stream.known_revision

    def _ms_since(self, at: float) -> int:
        return max(0, round((self._monotonic() - at) * 1000))
