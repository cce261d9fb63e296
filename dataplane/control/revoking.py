"""Revocations of one stream: in force at once, then on the disk, then answered."""

import asyncio
from collections.abc import Callable, Iterable
from typing import Final, Protocol

import structlog
from tollkeeper.config.v1 import config_service_pb2 as pb
from tollkeeper.config.v1 import resources_pb2

from dataplane.control.answers import revocation_ack
from dataplane.control.current import CurrentSnapshot
from dataplane.control.figures import StreamFigures
from dataplane.control.kept import KeptRevocation
from dataplane.control.outgoing import Outgoing
from dataplane.domain.revocations import DEVICE, KEY, ORGANIZATION, USER, Revocation

# More than the largest bulk change revokes; whoever is told more is told again by a transfer.
MAX_WAITING: Final = 10_000
# Kept together with one write: a disk takes a hundred writes a second where it must be sure.
_MAX_TOGETHER: Final = 256
# Longer than the keeper itself waits for its disk: a last bound.
_KEEP_SECONDS: Final = 10.0
# Ahead of any transfer: more than a node holds keys in a year of them.
_MAX_PENDING: Final = 100_000
# Ids are made by control planes and short; what is longer would only take memory.
_MAX_ID_CHARACTERS: Final = 1_000
_KINDS: Final = {
    resources_pb2.RESOURCE_KIND_API_KEY: KEY,
    resources_pb2.RESOURCE_KIND_USER: USER,
    resources_pb2.RESOURCE_KIND_ORGANIZATION: ORGANIZATION,
    resources_pb2.RESOURCE_KIND_DEVICE: DEVICE,
}

_log: Final = structlog.get_logger(__name__)
OnRevocation = Callable[[Revocation], None]


class RevocationKeeper(Protocol):
    """Keeps revocations on the disk."""

    async def keep_revocation(self, revocation: KeptRevocation) -> bool:
        """Return whether it is on the disk, when that is known."""
        ...


class TooManyRevocationsError(Exception):
    """More is revoked ahead of a transfer than a control plane that works tells of."""


class Revoking:
    """Puts revocations in force as they are read; a task keeps and answers them in their order."""

    def __init__(
        self,
        current: CurrentSnapshot,
        keeper: RevocationKeeper | None,
        on_revocation: OnRevocation | None,
        clock_ms: Callable[[], int],
        outgoing: Outgoing,
        figures: StreamFigures,
    ) -> None:
        """Prepare.

        Args:
            current: Where they are in force.
            keeper: Where they are kept. None: nothing is, so that a restart serves nothing either.
            on_revocation: Called with each; it must not block.
            clock_ms: Unix milliseconds.
            outgoing: Where answers go.
            figures: Where they are counted.
        """
        self._current = current
        self._keeper = keeper
        self._on_revocation = on_revocation
        self._clock_ms = clock_ms
        self._outgoing = outgoing
        self._figures = figures
        self._waiting: asyncio.Queue[tuple[str, KeptRevocation]] = asyncio.Queue(MAX_WAITING)

    def take(self, message: pb.Revocation) -> None:
        """Put a revocation in force, and queue it to be kept and answered.

        Raises:
            asyncio.QueueFull: 10,000 wait to be kept.
            TooManyRevocationsError: 100,000 subjects are revoked ahead of any transfer.
        """
        revocation = _from_proto(message)
        if revocation is None:
            # Silence is the truth: an answer would be counted in the receipt as "in force here".
            _log.warning("revocation_unknown", revocation_id=message.revocation_id[:200])
            return
        self._current.revoke(
            revocation.subject,
            revocation.config_epoch,
            revocation.revision,
            terminates=revocation.terminates,
        )
        self._figures.revocations_total += 1
        _tell(revocation, self._on_revocation)
        self._waiting.put_nowait((message.revocation_id, self._to_keep(revocation)))
        if self._current.pending_count > _MAX_PENDING:
            raise TooManyRevocationsError

    async def run(self) -> None:
        """Keep and answer what was taken, until cancelled."""
        while True:
            batch = [await self._waiting.get()]
            while len(batch) < _MAX_TOGETHER and not self._waiting.empty():
                batch.append(self._waiting.get_nowait())
            kept = await self._keep([revocation for _, revocation in batch])
            for (revocation_id, _), is_kept in zip(batch, kept, strict=True):
                await self._outgoing.send(revocation_ack(revocation_id, is_kept))
                self._waiting.task_done()

    async def settled(self) -> None:
        """Return when everything that was taken is answered."""
        await self._waiting.join()

    async def _keep(self, revocations: list[KeptRevocation]) -> list[bool]:
        """Keep them together; return of each whether it is on the disk."""
        keeper = self._keeper
        if keeper is None:
            return [True] * len(revocations)
        try:
            async with asyncio.timeout(_KEEP_SECONDS):
                kept = await asyncio.gather(*map(keeper.keep_revocation, revocations))
        except TimeoutError:
            kept = [False] * len(revocations)
        except Exception:
            # The boundary to the disk: it is in force in memory, and the stream must go on.
            _log.exception("revocation_keeping_failed")
            kept = [False] * len(revocations)
        if unkept := kept.count(False):
            self._figures.unkept_revocations_total += unkept
            _log.error("revocations_not_kept", count=unkept)
        return kept

    def _to_keep(self, revocation: Revocation) -> KeptRevocation:
        return KeptRevocation(
            revocation.kind,
            revocation.subject_id,
            revocation.organization_id,
            revocation.config_epoch,
            revocation.revision,
            self._clock_ms(),
        )


def tell_again(revocations: Iterable[KeptRevocation], on_revocation: OnRevocation | None) -> None:
    """Pass on what was kept, the oldest first; no streams in flight end because of it."""
    for each in revocations:
        revocation = Revocation(
            kind=each.kind,
            subject_id=each.subject_id,
            organization_id=each.organization_id,
            config_epoch=each.config_epoch,
            revision=each.revision,
            terminates=False,
        )
        _tell(revocation, on_revocation)


def _tell(revocation: Revocation, on_revocation: OnRevocation | None) -> None:
    if on_revocation is None:
        return
    try:
        on_revocation(revocation)
    except Exception:
        # The boundary to a second path: the first, this stream, must go on.
        _log.exception("revocation_not_passed_on")


def _from_proto(message: pb.Revocation) -> Revocation | None:
    """Return what is revoked; None where this program does not know such a thing."""
    kind = _KINDS.get(message.subject.kind)
    names = message.subject.id, message.config_epoch
    if kind is None or not all(names) or message.revision < 0:
        return None
    texts = *names, message.organization_id, message.revocation_id
    if max(map(len, texts)) > _MAX_ID_CHARACTERS:
        return None
    return Revocation(
        kind=kind,
        subject_id=message.subject.id,
        organization_id=message.organization_id,
        config_epoch=message.config_epoch,
        revision=message.revision,
        terminates=message.terminate_streams,
    )
