"""The configuration as it was last read, kept up to date change by change."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

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
    {pb.RESOURCE_KIND_ORGANIZATION, pb.RESOURCE_KIND_USER, pb.RESOURCE_KIND_API_KEY}
)


@dataclass(frozen=True, slots=True)
class Effect:
    """What a set of changes did."""

    is_urgent: bool
    """Something may be refused from now on that was admitted before: nobody waits for company."""
    revocations: list[RevocationOrder]
    """What can never come back: keys that were revoked, principals that were deleted."""


class WorkingState:
    """All resources by kind and id, with their digest and their references.

    Urgent is, by the simplest rule that is sound: every change of the service's settings or of a
    subject's limits, whichever way they moved; every deletion; and every organization that is
    paused, user that is suspended or key that is revoked, also if it was before.
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
                owners[item.key] = self._graph.targets_of(item.key)
                if self._remove(item) and item.key.kind in _PRINCIPALS:
                    revoked.append((item.key, item.revision))
                is_urgent = True
            else:
                was_refused = _is_refused(self._resources.get(item.key))
                is_refused = _is_refused(item.resource)
                if item.key.kind == pb.RESOURCE_KIND_API_KEY and is_refused and not was_refused:
                    revoked.append((item.key, item.resource.revision))
                is_urgent |= is_refused or item.key.kind in _ALWAYS_URGENT
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

    def _remove(self, gone: Gone) -> bool:
        """Take a resource out; say whether it was there."""
        self._removals.setdefault(gone.key.kind, []).append(gone.revision)
        self._digest = without_resource(self._digest, self._hashes.pop(gone.key, 0))
        self._graph.remove(gone.key)
        self._oversized.discard(gone.key)
        if gone.key.kind == pb.RESOURCE_KIND_CREDENTIAL:
            self._secrets.pop(gone.key.resource_id, None)
        return self._resources.pop(gone.key, None) is not None


_ALWAYS_URGENT: Final = frozenset({pb.RESOURCE_KIND_SERVICE, pb.RESOURCE_KIND_SUBJECT_LIMITS})


def _is_refused(resource: pb.Resource | None) -> bool:
    """Say whether a principal is revoked, suspended or paused by itself."""
    if resource is None:
        return False
    match resource.kind:
        case pb.RESOURCE_KIND_API_KEY:
            return pb.ApiKey.FromString(resource.payload).revoked
        case pb.RESOURCE_KIND_USER:
            return pb.User.FromString(resource.payload).suspended
        case pb.RESOURCE_KIND_ORGANIZATION:
            return pb.Organization.FromString(resource.payload).paused
        case _:
            return False
