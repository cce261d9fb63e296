"""Keys and devices: found by their hashes, and by nothing where two have the same one.

A credential that can be read *claims* its hash. It works as long as nobody else claims the same one, and no
more layers can count a call of it than one call can be checked against. A claim that does not work is
withheld: it comes back when the other claim goes, or the layers do.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Generic, TypeVar

from google.protobuf.message import DecodeError
from tollkeeper.config.v1 import resources_pb2 as pb

from dataplane.control.compiling.draft import Draft, decoded, noun_of
from dataplane.control.compiling.state import Callers
from dataplane.control.compiling.transition import Touched
from dataplane.control.holdings import Key
from dataplane.control.raw_resources import RawResource, UnusableResourceError
from dataplane.control.read_principals import read_device, read_key
from dataplane.domain.layer_bounds import LayerBounds
from dataplane.domain.principals import ApiKey, Device, Principal, User
from dataplane.domain.providers import Router
from dataplane.domain.sharded_map import MapEdition, ShardedMap

V = TypeVar("V")
_USER: Final = pb.RESOURCE_KIND_USER
_ROUTER: Final = pb.RESOURCE_KIND_ROUTER


@dataclass(frozen=True, slots=True)
class CallerKind(Generic[V]):
    """How credentials of one kind are read, and what is asked of them."""

    kind: int
    message_type: type[
        Any
    ]  # Any: pb.ApiKey or pb.Device, which share the fields that are asked for
    sha256_of: Callable[[Any], bytes]
    read: Callable[[RawResource, Any, Mapping[str, User], Mapping[str, Router]], tuple[bytes, V]]
    id_of: Callable[[V], str]
    principal_of: Callable[[V], Principal | None]


KEYS: Final[CallerKind[ApiKey]] = CallerKind(
    pb.RESOURCE_KIND_API_KEY,
    pb.ApiKey,
    lambda message: message.key_sha256,
    read_key,
    lambda key: key.key_id,
    lambda key: key.principal,
)
DEVICES: Final[CallerKind[Device]] = CallerKind(
    pb.RESOURCE_KIND_DEVICE,
    pb.Device,
    lambda message: message.token_sha256,
    read_device,
    lambda device: device.device_id,
    lambda device: device.principal,
)


@dataclass(slots=True)
class CallersDraft(Generic[V]):
    """Credentials of one kind in the making.

    Args:
        users: As they are from now on.
        routers: As they are from now on.
        routers_gone: Ids of routers that were there.
        bounds: How many layers anybody can have from now on.
    """

    draft: Draft
    of: CallerKind[V]
    origin: Callers[V]
    users: ShardedMap[str, User]
    routers: ShardedMap[str, Router]
    routers_gone: Collection[str]
    bounds: LayerBounds
    _found: MapEdition[bytes, V] = field(init=False)
    _withheld: MapEdition[bytes, tuple[str, ...]] = field(init=False)
    # Hashes that one claim is left of where there were several.
    _reopened: list[bytes] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._found = MapEdition(self.origin.by_sha256, len(self._touched))
        self._withheld = MapEdition(self.origin.withheld)

    @property
    def _touched(self) -> Touched:
        return self.draft.touched(self.of.kind)

    async def build(self, otherwise_limited: Touched, *, is_anybody_otherwise: bool) -> Callers[V]:
        """Read again what is touched, and count the layers of those that may have others.

        Args:
            otherwise_limited: Keys and devices that may have more layers than before, or fewer.
            is_anybody_otherwise: All may.
        """
        breathe = self.draft.slices.breathe
        if self.routers_gone:
            await self._touch_those_without_router()
        if is_anybody_otherwise:
            await self._touch_crowded()
        for key in otherwise_limited:
            if key[0] == self.of.kind and key in self.draft.origin.aside:
                self._touched.add(key)
            await breathe()
        for key in self._touched:
            self._withdraw(key)
            await breathe()
        for sha256 in self._reopened:
            self._reopen(sha256)
            await breathe()
        for key in self._touched.drain():
            self._claim(key)
            await breathe()
        if self.bounds.can_be_exceeded:
            if is_anybody_otherwise:
                await self._withhold_crowded()
            else:
                for key in otherwise_limited:
                    self._withhold_if_crowded(key)
                    await breathe()
        return Callers(self._found.done(), self._withheld.done())

    async def _touch_those_without_router(self) -> None:
        """Look at everybody: routers rarely go, and an index would cost as much as those who name them."""
        for part in self.origin.by_sha256.parts():
            for each in part.values():
                principal = self.of.principal_of(each)
                if principal is not None and principal.router_id in self.routers_gone:
                    self._touched.add((self.of.kind, self.of.id_of(each)))
            await self.draft.slices.breathe()

    async def _touch_crowded(self) -> None:
        for part in self.origin.withheld.parts():
            for ids in part.values():
                if len(ids) == 1:
                    self._touched.add((self.of.kind, ids[0]))
            await self.draft.slices.breathe()

    def _withdraw(self, key: Key) -> None:
        """Take back what a credential claimed as it was, and what it named."""
        self.draft.aside.discard(key)
        message = decoded(self.draft.transition.before(key), self.of.message_type)
        if message is None:
            return
        self._forget_references(key, message)
        sha256, resource_id = self.of.sha256_of(message), key[1]
        found = self._found.get(sha256)
        if found is not None and self.of.id_of(found) == resource_id:
            self._found.discard(sha256)
            return
        ids = self._withheld.get(sha256) or ()
        if resource_id not in ids:
            return
        others = tuple(each for each in ids if each != resource_id)
        if others:
            self._withheld.put(sha256, others)
        else:
            self._withheld.discard(sha256)
        if len(others) == 1:
            self._reopened.append(sha256)

    def _reopen(self, sha256: bytes) -> None:
        """Have the one read again that is left of those who claimed a hash."""
        ids = self._withheld.get(sha256) or ()
        if len(ids) == 1:
            key = (self.of.kind, ids[0])
            self._withdraw(key)
            self._touched.add(key)

    def _claim(self, key: Key) -> None:
        """Read a credential as it is from now on."""
        raw = self.draft.transition.after(key)
        if raw is None:
            return
        try:
            message = self.of.message_type.FromString(raw.payload)
        except DecodeError:
            self.draft.set_aside(raw, "it cannot be decoded")
            return
        self._note_references(key, message)
        try:
            sha256, value = self.of.read(raw, message, self.users, self.routers)
        except (UnusableResourceError, ValueError) as error:
            self.draft.set_aside(raw, str(error))
            return
        claimed_by = self._claimed_by(sha256)
        if claimed_by:
            self._withhold_twins(sha256, (*claimed_by, raw.resource_id))
            return
        principal = self.of.principal_of(value)
        problem = None if principal is None else self.bounds.problem_of(principal)
        if problem is None:
            self._found.put(sha256, value)
        else:
            self._withheld.put(sha256, (raw.resource_id,))
            self.draft.set_aside(raw, problem)

    def _claimed_by(self, sha256: bytes) -> tuple[str, ...]:
        found = self._found.discard(sha256)
        if found is not None:
            return (self.of.id_of(found),)
        return self._withheld.get(sha256) or ()

    def _withhold_twins(self, sha256: bytes, ids: tuple[str, ...]) -> None:
        """Let nobody be found by a hash that several claim: it says nothing about who calls."""
        self._withheld.put(sha256, ids)
        for resource_id in ids:
            detail = f"another {noun_of(self.of.kind)} has the same hash"
            self.draft.quarantine((self.of.kind, resource_id), detail)

    async def _withhold_crowded(self) -> None:
        for part in self._found.parts():
            for sha256, each in tuple(part.items()):
                self._check(sha256, each)
            await self.draft.slices.breathe()

    def _withhold_if_crowded(self, key: Key) -> None:
        message = None
        if key[0] == self.of.kind:
            message = decoded(self.draft.transition.after(key), self.of.message_type)
        if message is None:
            return
        sha256 = self.of.sha256_of(message)
        found = self._found.get(sha256)
        if found is not None and self.of.id_of(found) == key[1]:
            self._check(sha256, found)

    def _check(self, sha256: bytes, each: V) -> None:
        """Withhold a credential that works if too many layers can count it."""
        principal = self.of.principal_of(each)
        problem = None if principal is None else self.bounds.problem_of(principal)
        if principal is not None and problem is not None:
            self._found.discard(sha256)
            self._withheld.put(sha256, (principal.principal_id,))
            self.draft.quarantine((self.of.kind, principal.principal_id), problem)

    def _note_references(self, key: Key, message: Any) -> None:  # Any: as in `CallerKind`
        references = self.draft.references
        user = self.users.get(message.user_id)
        if message.user_id:
            # The text that is there already: a million more would be felt.
            user_id = message.user_id if user is None else user.user_id
            references[_USER].add(user_id, key)
        if message.router_id and message.router_id not in self.routers:
            references[_ROUTER].add(message.router_id, key)

    def _forget_references(self, key: Key, message: Any) -> None:  # Any: as in `CallerKind`
        if message.user_id:
            self.draft.references[_USER].discard(message.user_id, key)
        if message.router_id:
            self.draft.references[_ROUTER].discard(message.router_id, key)
