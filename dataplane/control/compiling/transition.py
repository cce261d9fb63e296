"""What was there before a change and what is after it, and which resources are to be read again."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from tollkeeper.config.v1 import resources_pb2 as pb

from dataplane.control.holdings import Change, Holdings, Key
from dataplane.control.raw_resources import RawResource, RawSecret
from dataplane.control.slices import Slices
from dataplane.domain.sharded_map import MapEdition, ShardedMap

KINDS: Final[frozenset[int]] = frozenset(pb.ResourceKind.values()) - {0}


class Touched:
    """Resources of one kind that are to be read again."""

    __slots__ = ("_keys",)

    def __init__(self, expected: int = 0) -> None:
        """Begin with none; make room for `expected`."""
        self._keys: MapEdition[Key, None] = MapEdition(ShardedMap(), expected)

    def __len__(self) -> int:
        return len(self._keys)

    def __contains__(self, key: Key) -> bool:
        return key in self._keys

    def add(self, key: Key) -> None:
        """Add a resource, which may be among them."""
        self._keys.put(key, None)

    def __iter__(self) -> Iterator[Key]:
        for part in self._keys.parts():
            yield from part

    def drain(self) -> Iterator[Key]:
        """Yield all and keep none: a million of them are not let go in one go."""
        parts = list(self._keys.parts())
        self._keys = MapEdition(ShardedMap())
        while parts:
            yield from parts.pop()


@dataclass(frozen=True, slots=True)
class Transition:
    """A change over what is held; build with `transition_of`."""

    holdings: Holdings
    change: Change
    touched: Mapping[int, Touched] = field(repr=False)

    def before(self, key: Key) -> RawResource | None:
        """Return a resource as it was."""
        return self.holdings.resources.get(key)

    def after(self, key: Key) -> RawResource | None:
        """Return a resource as it is from now on."""
        put = self.change.put.get(key)
        if put is not None or self.change.is_everything or key in self.change.removed:
            return put
        return self.holdings.resources.get(key)

    def secret_after(self, credential_id: str) -> RawSecret | None:
        """Return the secret of a credential as it is from now on."""
        sent, change = self.change.secrets.get(credential_id), self.change
        if sent is not None or change.is_everything or credential_id in change.dropped_secrets:
            return sent
        return self.holdings.secrets.get(credential_id)


async def transition_of(holdings: Holdings, change: Change, slices: Slices) -> Transition:
    """Return a change over what is held, and what it touches by itself.

    Neither may change meanwhile, nor as long as the transition is used.
    """
    counts = change.counts or {}
    touched = {kind: Touched(min(counts.get(kind, 0), len(change.put))) for kind in KINDS}
    held = holdings.resources
    for key, raw in change.put.items():
        # A change of everything holds much that is as it was.
        if key[0] in KINDS and held.get(key) != raw:
            touched[key[0]].add(key)
        await slices.breathe()
    for key in held if change.is_everything else change.removed:
        if key[0] in KINDS and key not in change.put:
            touched[key[0]].add(key)
        await slices.breathe()
    secrets = (change.secrets, change.dropped_secrets, holdings.secrets)
    for credential_ids in secrets if change.is_everything else secrets[:2]:
        for credential_id in credential_ids:
            key = (pb.RESOURCE_KIND_CREDENTIAL, credential_id)
            touched[pb.RESOURCE_KIND_CREDENTIAL].add(key)
            await slices.breathe()
    return Transition(holdings, change, touched)
