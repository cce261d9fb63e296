"""What a transfer does to what is held: the difference, checked before anything of it counts."""

from collections import Counter
from collections.abc import Mapping
from operator import itemgetter
from typing import Final

from tollkeeper.config.v1 import config_service_pb2 as pb
from tollkeeper.config.v1 import resources_pb2

from dataplane.control.holdings import Change, Holdings, Key
from dataplane.control.raw_resources import RawResource, RawSecret
from dataplane.control.refused import RefusedTransferError
from dataplane.control.slices import Slices
from dataplane.control.transfers import IncomingTransfer
from dataplane.domain.digest import digest_of_sum

# A kind with more entries than this is not halved by accident.
_GUARDED_ENTRIES: Final = 100


async def change_of(transfer: IncomingTransfer, held: Holdings) -> Change:
    """Return what a complete transfer does to what is `held`, which must stay as it is meanwhile.

    A DELTA costs what it holds, a FULL a walk over everything, in slices.

    Raises:
        RefusedTransferError: POSITION: it builds on another position or leads back. DIGEST: the content
            is not what was announced. GUARD: it removes too much.
    """
    _check_position(transfer, held)
    if transfer.intent == pb.TRANSFER_INTENT_FULL:
        change = await _of_everything(transfer, held)
    else:
        change = await _of_changes(transfer, held)
    if not transfer.is_forced:
        _check_removals(held.counts, change.removed)
    return change


def _check_position(transfer: IncomingTransfer, held: Holdings) -> None:
    to, now = transfer.to, held.position
    if transfer.intent == pb.TRANSFER_INTENT_DELTA and (
        transfer.start != now or to.config_epoch != now.config_epoch
    ):
        raise RefusedTransferError(pb.NACK_REASON_POSITION, "it builds on another position")
    if to.config_epoch == now.config_epoch and to.revision < now.revision:
        raise RefusedTransferError(
            pb.NACK_REASON_POSITION, f"it leads back from revision {now.revision} to {to.revision}"
        )


def _check_digest(transfer: IncomingTransfer, total: int) -> None:
    if digest_of_sum(total) != transfer.to.digest:
        raise RefusedTransferError(
            pb.NACK_REASON_DIGEST, "the content does not have the announced digest"
        )


async def _of_everything(transfer: IncomingTransfer, held: Holdings) -> Change:
    _check_digest(transfer, transfer.total)
    slices = Slices()
    removed: set[Key] = set()
    for key in held.resources:
        if key not in transfer.put:
            removed.add(key)
        if slices.is_over:
            await slices.breathe()
    is_everything = _is_other_epoch(transfer, held)
    put: Mapping[Key, RawResource] = transfer.put
    hashes: Mapping[Key, int] = transfer.hashes
    if is_everything:
        # Handed over: the transfer may be let go of in pieces.
        transfer.put, transfer.hashes = {}, {}
    else:
        put, hashes = await _new_or_different(transfer, held, slices)
    return Change(
        position=transfer.to,
        put=put,
        removed=frozenset(removed),
        secrets=transfer.secrets if is_everything else _other_secrets(transfer, held),
        dropped_secrets=frozenset(held.secrets.keys() - transfer.secrets.keys()),
        hashes=hashes,
        is_everything=is_everything,
        counts=transfer.counts,
    )


async def _of_changes(transfer: IncomingTransfer, held: Holdings) -> Change:
    """Return what a DELTA does, or a transfer of NONE, which is one without changes."""
    slices = Slices()
    put, hashes = await _new_or_different(transfer, held, slices)
    removed = frozenset(key for key in transfer.removed if key in held.resources)
    total, counts = held.digest_sum, dict(held.counts)
    for key, added in hashes.items():
        if (old := held.hashes.get(key)) is None:
            counts[key[0]] = counts.get(key[0], 0) + 1
        total += added - (old or 0)
        if slices.is_over:
            await slices.breathe()
    for key in removed:
        total -= held.hashes[key]
        counts[key[0]] -= 1
        if slices.is_over:
            await slices.breathe()
    _check_digest(transfer, total)
    gone = {
        resource_id
        for kind, resource_id in removed
        if kind == resources_pb2.RESOURCE_KIND_CREDENTIAL
    }
    secrets = {key: each for key, each in _other_secrets(transfer, held).items() if key not in gone}
    # Nothing to send, and another epoch, or nothing held before: all that is held begins anew.
    is_everything = _is_other_epoch(transfer, held)
    return Change(
        position=transfer.to,
        put=dict(held.resources) if is_everything else put,
        removed=removed,
        secrets={**held.secrets, **secrets} if is_everything else secrets,
        dropped_secrets=frozenset(gone & held.secrets.keys()),
        hashes=dict(held.hashes) if is_everything else hashes,
        is_everything=is_everything,
        counts=counts,
    )


def _is_other_epoch(transfer: IncomingTransfer, held: Holdings) -> bool:
    return transfer.to.config_epoch != held.position.config_epoch


async def _new_or_different(
    transfer: IncomingTransfer, held: Holdings, slices: Slices
) -> tuple[dict[Key, RawResource], dict[Key, int]]:
    put: dict[Key, RawResource] = {}
    hashes: dict[Key, int] = {}
    for key, raw in transfer.put.items():
        old = held.resources.get(key)
        # Equal and not the same: it arrived while the transfer before it was being put in force.
        if old is not raw and old != raw:
            put[key], hashes[key] = raw, transfer.hashes[key]
        if slices.is_over:
            await slices.breathe()
    return put, hashes


def _other_secrets(transfer: IncomingTransfer, held: Holdings) -> dict[str, RawSecret]:
    return {
        credential_id: secret
        for credential_id, secret in transfer.secrets.items()
        if held.secrets.get(credential_id) != secret
    }


def _check_removals(before: Mapping[int, int], removed: frozenset[Key]) -> None:
    for kind, count in Counter(map(itemgetter(0), removed)).items():
        if before[kind] > _GUARDED_ENTRIES and count * 2 > before[kind]:
            raise RefusedTransferError(
                pb.NACK_REASON_GUARD,
                f"it removes {count} of {before[kind]} resources of kind {kind}",
            )
