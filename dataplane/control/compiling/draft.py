"""A state in the making: what its parts share while they are built, one kind after the other."""

from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final, TypeVar

from google.protobuf.message import DecodeError, Message
from tollkeeper.config.v1 import resources_pb2 as pb

from dataplane.control.compiling.outcome import MAX_PROBLEMS
from dataplane.control.compiling.references import References, ReferencesEdition
from dataplane.control.compiling.state import Quarantined, State
from dataplane.control.compiling.transition import Touched, Transition
from dataplane.control.holdings import Key
from dataplane.control.raw_resources import RawResource, UnusableResourceError
from dataplane.control.slices import Slices
from dataplane.domain.sharded_map import MapEdition, ShardedMap

REFERRED_KINDS: Final = (
    pb.RESOURCE_KIND_ORGANIZATION,
    pb.RESOURCE_KIND_USER,
    pb.RESOURCE_KIND_PROVIDER,
    pb.RESOURCE_KIND_CREDENTIAL,
    pb.RESOURCE_KIND_ROUTER,
)
_NOBODY: Final = References()

M = TypeVar("M", bound=Message)
V = TypeVar("V")
# Told of an id, what it was and what it is from now on; of what is the same it is not told.
Changed = Callable[[str, V | None, V | None], Awaitable[None]]
Reject = Callable[[RawResource, str], None]
# What a message refers to, by kind and id.
Refers = Callable[[M], Iterable[tuple[int, str]]]


def noun_of(kind: int) -> str:
    """Return what a known kind is called in a problem: `api_key`."""
    return pb.ResourceKind.Name(kind).removeprefix("RESOURCE_KIND_").lower()  # type: ignore[arg-type] # a known kind


def decoded(raw: RawResource | None, message_type: type[M]) -> M | None:
    """Return the message of a resource; None when it is not there or cannot be decoded."""
    if raw is None:
        return None
    try:
        return message_type.FromString(raw.payload)
    except DecodeError:
        return None


@dataclass(slots=True)
class Draft:
    """What is known so far of the state that a change makes of `origin`."""

    origin: State
    transition: Transition
    slices: Slices
    problems: list[str] = field(default_factory=list)
    aside: MapEdition[Key, Quarantined] = field(init=False)
    references: Mapping[int, ReferencesEdition] = field(init=False)

    def __post_init__(self) -> None:
        self.aside = MapEdition(self.origin.aside)
        users = len(self.transition.touched[pb.RESOURCE_KIND_USER])
        expected = {pb.RESOURCE_KIND_USER: users}
        self.references = {
            kind: ReferencesEdition(self._referrers(kind), expected.get(kind, 0))
            for kind in REFERRED_KINDS
        }

    def touched(self, kind: int) -> Touched:
        """Return what is to be read again of a kind, so far."""
        return self.transition.touched[kind]

    def referrers_of(self, kind: int, resource_id: str) -> Iterable[Key]:
        """Return those that named a resource before, whether or not it was there."""
        return self._referrers(kind).of(resource_id)

    async def touch_referrers(self, kind: int, resource_id: str) -> None:
        """Have those read again that name a resource: it is another one, or came or went."""
        for key in self.referrers_of(kind, resource_id):
            self.transition.touched[key[0]].add(key)
            await self.slices.breathe()

    def refuse(self, raw: RawResource, detail: str) -> None:
        """Note why the whole is refused."""
        if len(self.problems) < MAX_PROBLEMS:
            self.problems.append(f"{noun_of(raw.kind)} {raw.resource_id}: {detail}")

    def set_aside(self, raw: RawResource, detail: str) -> None:
        """Set a leaf aside."""
        self.quarantine((raw.kind, raw.resource_id), detail)

    def quarantine(self, key: Key, detail: str) -> None:
        """Set a leaf aside."""
        self.aside.put(key, Quarantined(key[0], key[1], detail))

    async def rebuilt(
        self,
        kind: int,
        message_type: type[M],
        origin: ShardedMap[str, V],
        read: Callable[[RawResource, M], V | None],
        reject: Reject,
        *,
        changed: Changed[V] | None = None,
        refers: Refers[M] = lambda _: (),
    ) -> ShardedMap[str, V]:
        """Return resources of a kind by id, with those read again that are touched.

        Args:
            kind: Which.
            message_type: What they are decoded as.
            origin: As they were.
            read: Reads one, or says with None that it means nothing here.
            reject: Told of each that cannot be read.
            changed: Told of each that differs, after it is known.
            refers: Says what a message refers to, by kind and id.
        """
        touched = self.touched(kind)
        edition = MapEdition(origin, len(touched))
        for key in touched.drain():
            self.aside.discard(key)
            self._note_references(key, message_type, refers)
            before, after = origin.get(key[1]), self._read(key, message_type, read, reject)
            if after is None:
                edition.discard(key[1])
            elif after != before:
                # What means the same stays the same object, and nobody has to be read again.
                edition.put(key[1], after)
            if changed is not None and after != before:
                await changed(key[1], before, after)
            await self.slices.breathe()
        return edition.done()

    def _read(
        self,
        key: Key,
        message_type: type[M],
        read: Callable[[RawResource, M], V | None],
        reject: Reject,
    ) -> V | None:
        raw = self.transition.after(key)
        if raw is None:
            return None
        try:
            return read(raw, message_type.FromString(raw.payload))
        except DecodeError:
            reject(raw, "it cannot be decoded")
        except (UnusableResourceError, ValueError) as error:
            reject(raw, str(error))
        return None

    def _note_references(self, key: Key, message_type: type[M], refers: Refers[M]) -> None:
        raw_before, raw_after = self.transition.before(key), self.transition.after(key)
        if raw_before is raw_after:
            return
        before, after = decoded(raw_before, message_type), decoded(raw_after, message_type)
        for kind, resource_id in set(refers(before)) if before is not None else ():
            self.references[kind].discard(resource_id, key)
        for kind, resource_id in set(refers(after)) if after is not None else ():
            self.references[kind].add(resource_id, key)

    def _referrers(self, kind: int) -> References:
        return self.origin.referrers.get(kind, _NOBODY)
