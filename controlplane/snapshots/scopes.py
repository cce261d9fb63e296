"""Scopes: what of the configuration a node is sent something of.

Each resource has one owner: an organization, or everybody. A node that serves some organizations has what they own and
what everybody owns. Whose a resource is follows from what it refers to: a key is its user's, and so its organization's.
Pure: no I/O, no clock.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Final, TypeVar

from tollkeeper.config.v1 import resources_pb2 as pb

from controlplane.snapshots.references import ResourceKey

ValueT = TypeVar("ValueT")

Scope = frozenset[str]
"""Ids of organizations; empty means all of them, and everything else."""

EVERYTHING: Final[Scope] = frozenset()

SHARED: Final = ""
"""The owner of what every node has."""

UNRESOLVED: Final = "\0"
"""The owner of what refers to nothing that exists: in no scope but that of everything. It is never published."""

# More steps than any chain of owners has: limits → key → user → organization.
_LONGEST_CHAIN: Final = 8

_OWNING_KIND: Final = {
    pb.RESOURCE_KIND_USER: pb.RESOURCE_KIND_ORGANIZATION,
    pb.RESOURCE_KIND_PROVIDER: pb.RESOURCE_KIND_ORGANIZATION,
    pb.RESOURCE_KIND_ROUTER: pb.RESOURCE_KIND_ORGANIZATION,
    pb.RESOURCE_KIND_API_KEY: pb.RESOURCE_KIND_USER,
    pb.RESOURCE_KIND_DEVICE: pb.RESOURCE_KIND_USER,
    pb.RESOURCE_KIND_CREDENTIAL: pb.RESOURCE_KIND_PROVIDER,
}
"""Of what a resource refers to, the kind that says whose it is."""


def contains(scope: Scope, owner: str) -> bool:
    """Say whether a node of `scope` has what `owner` owns."""
    return not scope or owner == SHARED or owner in scope


def parent_of(key: ResourceKey, targets: Iterable[ResourceKey]) -> ResourceKey | None:
    """Return what decides whose `key` is, among what it refers to; None for what is its own or everybody's."""
    if key.kind == pb.RESOURCE_KIND_SUBJECT_LIMITS:
        return next(iter(targets), None)
    owning = _OWNING_KIND.get(key.kind)
    return next((target for target in targets if target.kind == owning), None)


def owner_of(
    key: ResourceKey, targets_of: Callable[[ResourceKey], tuple[ResourceKey, ...] | None]
) -> str:
    """Return whose `key` is: an organization's id, `SHARED` or `UNRESOLVED`.

    Args:
        key: A resource that exists.
        targets_of: Returns what a resource refers to, or None when it does not exist.
    """
    for _ in range(_LONGEST_CHAIN):
        targets = targets_of(key)
        if targets is None:
            return UNRESOLVED
        if key.kind == pb.RESOURCE_KIND_ORGANIZATION:
            return key.resource_id
        parent = parent_of(key, targets)
        if parent is None:
            return SHARED
        key = parent
    return UNRESOLVED


def owners_in(by_owner: Mapping[str, ValueT], scope: Scope) -> Iterator[ValueT]:
    """Yield what the owners in `scope` have; without those that have nothing."""
    if not scope:
        yield from by_owner.values()
        return
    for owner in (SHARED, *sorted(scope)):
        if owner in by_owner:
            yield by_owner[owner]
