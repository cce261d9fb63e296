"""Puts complete transfers in force, one at a time: aside first, then at once, then on the disk."""

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

import structlog
from tollkeeper.config.v1 import config_service_pb2 as pb

from dataplane.changes import Changes
from dataplane.control.compile import Compiled, InvalidConfigurationError, Quarantined
from dataplane.control.current import CurrentSnapshot
from dataplane.control.differences import change_of
from dataplane.control.figures import StreamFigures
from dataplane.control.holdings import Change, Holdings, replaced_by
from dataplane.control.kept import Kept
from dataplane.control.refused import RefusedTransferError
from dataplane.control.revoking import RevocationKeeper
from dataplane.control.slices import Remains, let_go
from dataplane.control.transfers import IncomingTransfer
from dataplane.domain.snapshot import Position

# So many resources are most of a configuration in which it is worth while.
_MANY: Final = 10_000
FAULT: Final = "a fault of the node, which is in its log, ended its compilation"

_log: Final = structlog.get_logger(__name__)


class Compiling(Protocol):
    """Makes snapshots, from what is held and what changes; see `Compiler`."""

    async def compile(self, holdings: Holdings, change: Change, applied_at_ms: int) -> Compiled:
        """Return the snapshot after `change`; nothing has changed yet."""
        ...

    def commit(self, compiled: Compiled) -> None:
        """Take over what was compiled last."""
        ...


class Keeping(RevocationKeeper, Protocol):
    """Keeps what is in force on the disk; see `LastKnownGood`."""

    def keep(self, holdings: Holdings, change: Change) -> None:
        """Queue a change that was put in force, to be written."""
        ...


@dataclass(frozen=True, slots=True)
class Applied:
    """A transfer that is in force.

    Attributes:
        position: Where the configuration stands now.
        quarantined: All leaves that are set aside now.
        apply_ms: From the last message of the transfer to its being in force.
    """

    position: Position
    quarantined: tuple[Quarantined, ...]
    apply_ms: int


class Applier:
    """Owns what is held; nobody else changes it. Calls must not overlap."""

    def __init__(
        self,
        current: CurrentSnapshot,
        compiler: Compiling,
        keeper: Keeping | None,
        clock_ms: Callable[[], int],
        changes: Changes,
        figures: StreamFigures,
    ) -> None:
        """Begin with nothing.

        Args:
            current: Where snapshots are put in force.
            compiler: What makes them.
            keeper: Where what is in force is kept; None: nowhere.
            clock_ms: Unix milliseconds.
            changes: Noted with everything that is put in force.
            figures: Where it is counted.
        """
        self.holdings: Final = Holdings()
        self._current = current
        self._compiler = compiler
        self._keeper = keeper
        self._clock_ms = clock_ms
        self._changes = changes
        self._figures = figures
        # Replaced, or refused: hundreds of thousands of objects that nobody needs.
        self._remains: list[Remains] = []
        self._came_many = False

    async def restore(self, kept: Kept) -> bool:
        """Serve what an earlier process left; return whether it can be served.

        What was revoked is in force before anything is served, and stays so where nothing can be.
        """
        for each in kept.revocations:
            self._current.revoke(
                (each.kind, each.subject_id), each.config_epoch, each.revision, terminates=False
            )
        change = kept.change
        if change is None:
            return False
        try:
            compiled = await self._compiled(change)
        except RefusedTransferError as refused:
            _log.error("kept_configuration_unusable", problems=list(refused.problems))
            return False
        self._current.must_hear_control_plane = not kept.is_complete
        if not kept.is_complete:
            _log.error("revocations_unreadable", effect="nothing is served without a control plane")
        self._put_in_force(change, compiled)
        return True

    async def apply(self, transfer: IncomingTransfer, arrived_at: float) -> Applied:
        """Put a complete transfer in force; its last message arrived at `arrived_at`, monotonic.

        Cancelled or refused, it has changed nothing.

        Raises:
            RefusedTransferError: It is refused whole; what was in force stays.
        """
        try:
            change = await change_of(transfer, self.holdings)
            compiled = await self._compiled(change)
        finally:
            self._remains += transfer.remains()
        replaced = await replaced_by(change, self.holdings)
        await self.holdings.prepare(change)
        former: tuple[Remains, ...] = (self.holdings.resources, self.holdings.hashes)
        self._put_in_force(change, compiled)
        # Not before: whoever is cancelled goes on with what was held.
        self._remains += replaced
        if self.holdings.resources is not former[0]:
            self._remains += former
        self._came_many |= len(change.put) >= _MANY
        # The control plane was heard, and what it says contains what was revoked.
        self._current.must_hear_control_plane = False
        self._figures.applied_at_ms = self._clock_ms()
        self._figures.apply_ms = round((time.monotonic() - arrived_at) * 1000)
        self._keep(change)
        return Applied(change.position, compiled.quarantined, self._figures.apply_ms)

    async def tidy(self) -> None:
        """Let go of what the last transfers left, in slices."""
        await let_go(self._remains)
        if self._came_many:
            self._came_many = False
            # What came is here to stay: looking through all of it for garbage would stop every request for half a
            # second. Cycles that are garbage in this moment are never collected; they are those of a few requests.
            gc.freeze()

    async def _compiled(self, change: Change) -> Compiled:
        try:
            return await self._compiler.compile(self.holdings, change, self._clock_ms())
        except InvalidConfigurationError as error:
            raise RefusedTransferError(pb.NACK_REASON_INVALID, *error.problems) from error
        except Exception as error:
            # The boundary of what others wrote: a configuration that trips this program is refused,
            # and the stream goes on, so that revocations arrive.
            _log.exception("config_compilation_failed", revision=change.position.revision)
            raise RefusedTransferError(pb.NACK_REASON_INVALID, FAULT) from error

    def _put_in_force(self, change: Change, compiled: Compiled) -> None:
        # Without an await in between: nobody may see one without the others.
        self.holdings.commit(change)
        self._current.replace(compiled.snapshot)
        self._compiler.commit(compiled)
        self._figures.quarantined = len(compiled.quarantined)
        self._changes.note()

    def _keep(self, change: Change) -> None:
        if self._keeper is None:
            return
        try:
            self._keeper.keep(self.holdings, change)
        except Exception:
            # The boundary to the disk: what is in force in memory stays so.
            _log.exception("configuration_not_kept")
