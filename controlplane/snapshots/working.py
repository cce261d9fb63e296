"""The configuration as it was last read, kept up to date change by change."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from tollkeeper.common.v1 import devices_pb2
from tollkeeper.config.v1 import resources_pb2 as pb

from controlplane.domain.digest import (
    digest_bytes,
    resource_hash,
    with_resource,
    without_resource,
)
from controlplane.snapshots.build import Built, Gone, ResourceBuilder
from controlplane.snapshots.consistency import ReferenceGraph
from controlplane.snapshots.fleet import RevocationOrder
from controlplane.snapshots.references import ResourceKey, references_of
from controlplane.snapshots.snapshot import Position, SealedSecret, Snapshot
from controlplane.snapshots.transfers import MAX_RESOURCE_BYTES
from controlplane.store.changes import Changes

# Rows between two turns of the event loop: a few milliseconds of work.
_SLICE_ROWS: Final = 200

_PRINCIPALS: Final = frozenset(
    {
        pb.RESOURCE_KIND_ORGANIZATION,
        pb.RESOURCE_KIND_USER,
        pb.RESOURCE_KIND_API_KEY,
        pb.RESOURCE_KIND_DEVICE,
    }
)


@dataclass(frozen=True, slots=True)
class Effect:
    """What a set of changes did."""

    is_urgent: bool
    """Something may be refused from now on that was admitted before: nobody waits for company."""
    revocations: list[RevocationOrder]
    """What can never come back: keys and devices that were revoked, principals that were deleted."""


class WorkingState:
    """All resources by kind and id, with their digest and their references.

    Urgent is, by the simplest rule that is sound: every change of the service's settings, of a tier
    or of a subject's limits, whichever way they moved; every deletion; every organization that is
    paused, user that is suspended, key that is revoked or device that is rejected, suspended or
    revoked, also if it was before; and every device with another session token.
    """

    def __init__(self) -> None:
        self.config_epoch = ""
        self.revision = 0
        self._builder = ResourceBuilder()
        self._graph = ReferenceGraph()
        self._resources: dict[ResourceKey, pb.Resource] = {}
        self._secrets: dict[str, SealedSecret] = {}
        self._hashes: dict[ResourceKey, int] = {}
        self._digest = 0
        self._oversized: set[ResourceKey] = set()
        self._removals: dict[int, list[int]] = {}

    async def apply(self, changes: Changes) -> Effect:
        """Take in `changes`, in slices that leave the event loop to others in between.

        Must not be cancelled and used further: a part would be missing.
        """
        is_urgent = False
        revoked: list[tuple[ResourceKey, int]] = []
        gone: set[ResourceKey] = set()
        owners: dict[ResourceKey, tuple[ResourceKey, ...]] = {}
        for count, item in enumerate(self._builder.build(changes), start=1):
            if isinstance(item, Gone):
                gone.add(item.key)
                owners[item.key] = self._principals_above(item.key)
                if _needs_revocation(self._remove(item)):
                    revoked.append((item.key, item.revision))
                is_urgent = True
            else:
                before = self._resources.get(item.key)
                if _is_revoked(item.resource) and not _is_revoked(before):
                    revoked.append((item.key, item.resource.revision))
                is_urgent |= (
                    item.key.kind in _ALWAYS_URGENT
                    or _is_refused(item.resource)
                    or _has_another_token(before, item.resource)
                )
                self._put(item)
            if count % _SLICE_ROWS == 0:
                await asyncio.sleep(0)
        self.config_epoch = changes.config_epoch
        self.revision = changes.revision
        # The deletion of an owner speaks for what was deleted with it.
        orders = [
            RevocationOrder(key, revision, self.config_epoch)
            for key, revision in revoked
            if gone.isdisjoint(owners.get(key, ()))
        ]
        return Effect(is_urgent, orders)

    def problems(self) -> list[str]:
        """Return why this state must not be published: at most 20 lines, none when it may."""
        oversized = [f"{key} is larger than a transfer takes" for key in sorted(self._oversized)]
        return [*map(str, self._graph.dangling()), *oversized][:20]

    @property
    def position(self) -> Position:
        """Where this state stands."""
        return Position(self.config_epoch, self.revision, digest_bytes(self._digest))

    def snapshot(self) -> Snapshot:
        """Return this state as it is now; later changes do not reach it."""
        removals: Mapping[int, tuple[int, ...]] = {
            kind: tuple(revisions) for kind, revisions in self._removals.items()
        }
        return Snapshot(self.position, dict(self._resources), dict(self._secrets), removals)

    def _put(self, built: Built) -> None:
        key, resource = built.key, built.resource
        self._digest = without_resource(self._digest, self._hashes.get(key, 0))
        self._hashes[key] = resource_hash(
            key.kind, key.resource_id, resource.revision, resource.payload
        )
        self._digest = with_resource(self._digest, self._hashes[key])
        self._resources[key] = resource
        self._graph.put(key, references_of(resource))
        if built.secret is not None:
            self._secrets[key.resource_id] = built.secret
        if resource.ByteSize() > MAX_RESOURCE_BYTES:
            self._oversized.add(key)
        else:
            self._oversized.discard(key)

    def _principals_above(self, key: ResourceKey) -> tuple[ResourceKey, ...]:
        targets = self._graph.targets_of(key)
        return tuple(target for target in targets if target.kind in _PRINCIPALS)

    def _remove(self, gone: Gone) -> pb.Resource | None:
        """Take a resource out; return it, or None when it was not there."""
        self._removals.setdefault(gone.key.kind, []).append(gone.revision)
        self._digest = without_resource(self._digest, self._hashes.pop(gone.key, 0))
        self._graph.remove(gone.key)
        self._oversized.discard(gone.key)
        if gone.key.kind == pb.RESOURCE_KIND_CREDENTIAL:
            self._secrets.pop(gone.key.resource_id, None)
        return self._resources.pop(gone.key, None)


_ALWAYS_URGENT: Final = frozenset(
    {pb.RESOURCE_KIND_SERVICE, pb.RESOURCE_KIND_SUBJECT_LIMITS, pb.RESOURCE_KIND_TIER}
)
_CALLING_DEVICES: Final = frozenset(
    {devices_pb2.DEVICE_STATUS_APPROVED, devices_pb2.DEVICE_STATUS_SUSPENDED}
)
_REFUSED_DEVICES: Final = frozenset(
    {
        devices_pb2.DEVICE_STATUS_REJECTED,
        devices_pb2.DEVICE_STATUS_SUSPENDED,
        devices_pb2.DEVICE_STATUS_REVOKED,
    }
)


def _is_refused(resource: pb.Resource) -> bool:
    """Say whether a principal is rejected, revoked, suspended or paused by itself."""
    match resource.kind:
        case pb.RESOURCE_KIND_API_KEY:
            return pb.ApiKey.FromString(resource.payload).revoked
        case pb.RESOURCE_KIND_USER:
            return pb.User.FromString(resource.payload).suspended
        case pb.RESOURCE_KIND_ORGANIZATION:
            return pb.Organization.FromString(resource.payload).paused
        case pb.RESOURCE_KIND_DEVICE:
            return pb.Device.FromString(resource.payload).status in _REFUSED_DEVICES
        case _:
            return False


def _is_revoked(resource: pb.Resource | None) -> bool:
    """Say whether a key or a device is out of service for good."""
    if resource is None:
        return False
    match resource.kind:
        case pb.RESOURCE_KIND_API_KEY:
            return pb.ApiKey.FromString(resource.payload).revoked
        case pb.RESOURCE_KIND_DEVICE:
            status = pb.Device.FromString(resource.payload).status
            return status == devices_pb2.DEVICE_STATUS_REVOKED
        case _:
            return False


def _needs_revocation(deleted: pb.Resource | None) -> bool:
    """Say whether what was deleted was somebody who might have called."""
    if deleted is None or deleted.kind not in _PRINCIPALS:
        return False
    if deleted.kind == pb.RESOURCE_KIND_DEVICE:
        # Devices that wait are forgotten by the hundred; orders about them would push others out.
        return pb.Device.FromString(deleted.payload).status in _CALLING_DEVICES
    return True


def _has_another_token(before: pb.Resource | None, after: pb.Resource) -> bool:
    """Say whether a device's former session token is refused from now on."""
    if before is None or after.kind != pb.RESOURCE_KIND_DEVICE:
        return False
    former = pb.Device.FromString(before.payload).token_sha256
    return former != pb.Device.FromString(after.payload).token_sha256
