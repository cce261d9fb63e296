"""Which hash tag counts what, where each organization's counters are apart from the others'.

    {b<crc16(organization id) mod 256>}   organization, user, key, device
    {g}                                   what organizations share: global, address, endpoint, model

The checksum is that of Redis Cluster, so that anybody can say with its tools where counters are.
"""

from binascii import crc_hqx
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Self, TypeVar
from weakref import WeakKeyDictionary

import msgspec

from dataplane.domain.limiting import Demand, Layer, LayerPlan
from dataplane.domain.sums import SERVICE_KINDS
from dataplane.limits.counters import DEFAULT_HASH_TAG

BUCKETS: Final = 256
# The tag of everything in `single` mode; guards keep it, too.
SHARED_TAG: Final = DEFAULT_HASH_TAG
T = TypeVar("T")


def bucket_tag(organization_id: str) -> str:
    """Return the hash tag that counts an organization."""
    return f"b{crc_hqx(organization_id.encode(), 0) % BUCKETS}"


def hash_tag_in(key: str) -> str:
    """Return the hash tag of a key; empty when it has none."""
    return key.partition("{")[2].partition("}")[0]


@dataclass(frozen=True, slots=True, eq=False)
class Halves:
    """A plan as it is counted: what organizations share, and the organization's own.

    Attributes:
        shared: The layers under `SHARED_TAG`; None: there are none.
        own: Those under `tag`; None: there are none but shared ones. A plan without any layer is
            its organization's.
        tag: That of the organization's bucket.
        places: Where each layer of the whole plan stands among the shared ones and then the own.
    """

    shared: LayerPlan | None
    own: LayerPlan | None
    tag: str
    places: tuple[int, ...]

    @classmethod
    def of(cls, plan: LayerPlan) -> Self:
        """Return the halves of a plan.

        A half that is all of it is a plan of its own, too: whoever remembers halves as long as their
        plan is used must not hold the plan with them.
        """
        is_shared = [layer.subject_kind in SERVICE_KINDS for layer in plan.layers]
        tag = bucket_tag(plan.organization_id)
        whole = tuple(range(len(is_shared)))
        if not any(is_shared):
            return cls(None, _part(plan, plan.layers), tag, whole)
        if all(is_shared):
            return cls(_part(plan, plan.layers), None, tag, whole)
        order = sorted(whole, key=lambda place: not is_shared[place])
        places = tuple(order.index(place) for place in whole)
        first = sum(is_shared)
        layers = [plan.layers[place] for place in order]
        return cls(_part(plan, layers[:first]), _part(plan, layers[first:]), tag, places)

    def merged(self, shared: Sequence[T], own: Sequence[T]) -> tuple[T, ...]:
        """Return what is said of each layer of both halves, in the order of the whole plan."""
        both = (*shared, *own)
        return tuple([both[place] for place in self.places])


class Divider:
    """Divides plans, and remembers the halves as long as the plan is used."""

    def __init__(self) -> None:
        """Begin with no plan."""
        self._halves: WeakKeyDictionary[LayerPlan, Halves] = WeakKeyDictionary()

    def halves_of(self, plan: LayerPlan) -> Halves:
        """Return the halves of a plan, always the same ones."""
        known = self._halves.get(plan)
        if known is None:
            known = self._halves[plan] = Halves.of(plan)
        return known


class HalfMeta(msgspec.Struct, frozen=True):
    """The meta of a shared half: not enough for a record, which the other half's is.

    `reserved_*` are what a record of the whole request says.
    """

    is_shared_half: bool = False
    organization_id: str = ""
    reserved_tokens: int = 0
    reserved_nanousd: int = 0


_encode: Final = msgspec.json.Encoder().encode
_decoder: Final = msgspec.json.Decoder(HalfMeta)


def half_meta(plan: LayerPlan, demand: Demand) -> bytes:
    """Return the meta of the shared half of a request."""
    is_soft = plan.charges_expected
    reserved = demand.soft_nanousd if is_soft else demand.cost_nanousd
    return _encode(HalfMeta(True, plan.organization_id, demand.tokens, reserved))


def is_shared_half(meta: str) -> bool:
    """Tell whether a reservation with this meta is the shared half of another."""
    try:
        return _decoder.decode(meta).is_shared_half
    except msgspec.MsgspecError:
        return False


def _part(plan: LayerPlan, layers: Sequence[Layer]) -> LayerPlan:
    return LayerPlan(tuple(layers), None, plan.valid_until_ms, plan.organization_id)
