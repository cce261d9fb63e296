"""The layers of tiers: the flags that set them, and how a tier is changed.

A tier has layers of four kinds. A command line gives some of them; a change reads the tier, puts what was given in the
place of the layers of the same unit and window, and sends it back with its etag, so that nobody's change is lost.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from controlplane.cli.capacities import Capacity
from controlplane.cli.flags import with_flags
from controlplane.cli.layers import (
    LayerName,
    empty_limit,
    layer_parameters,
    limit_of,
    modifier_parameters,
    pop_capacities,
    require_modified,
)
from controlplane.cli.lazy_modules import imported_on_use

if TYPE_CHECKING:
    import grpc
    from google.protobuf import field_mask_pb2
    from tollkeeper.admin.v1 import tier_service_pb2 as pb
    from tollkeeper.admin.v1 import tier_service_pb2_grpc as rpc
    from tollkeeper.common.v1.limits_pb2 import Limit
else:
    field_mask_pb2 = imported_on_use("google.protobuf.field_mask_pb2")
    pb = imported_on_use("tollkeeper.admin.v1.tier_service_pb2")
    rpc = imported_on_use("tollkeeper.admin.v1.tier_service_pb2_grpc")


class Counted(StrEnum):
    """Whom a layer of a tier counts, as its flags begin."""

    DEVICE = "device"
    IP = "ip"
    USER = "user"
    CREDENTIAL = "credential"

    @property
    def field(self) -> str:
        """The field of a tier that holds these layers."""
        return f"{self}_limits"


@dataclass(frozen=True, slots=True)
class TierLayers:
    """The layers that a command line sets, by whom they count."""

    capacities: Mapping[Counted, Mapping[LayerName, Capacity]]
    soft: bool
    shadow: bool

    def limits(self) -> "dict[Counted, list[Limit]]":
        """Return them as the contract writes them, without the kinds of which nothing is given.

        Raises:
            BadParameter: `--soft` without a budget or `--shadow` without a limit, which is wrong usage.
        """
        given = [name for capacities in self.capacities.values() for name in capacities]
        require_modified(given, soft=self.soft, shadow=self.shadow)
        return {
            counted: [
                limit_of(name, capacity, soft=self.soft, shadow=self.shadow)
                for name, capacity in capacities.items()
            ]
            for counted, capacities in self.capacities.items()
            if capacities
        }


def takes_tier_layers(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the flags of a tier's layers, which it receives together as the argument `layers`."""

    def collect(arguments: dict[str, object]) -> TierLayers:
        capacities = {counted: pop_capacities(arguments, f"{counted}-") for counted in Counted}
        return TierLayers(capacities, bool(arguments.pop("soft")), bool(arguments.pop("shadow")))

    flags = [flag for counted in Counted for flag in layer_parameters(f"{counted}-")]
    return with_flags(command, "layers", [*flags, *modifier_parameters()], collect)


def put_limits(tier: "pb.Tier", given: "Mapping[Counted, Sequence[Limit]]") -> None:
    """Put layers into a tier, in place of its own of the same unit and window.

    One without limit takes the layer away: a tier says `none` by having none.
    """
    for counted, limits in given.items():
        layers: list[Limit] = getattr(tier, counted.field)
        merged = {(limit.unit, limit.window): limit for limit in layers}
        for limit in limits:
            merged[limit.unit, limit.window] = limit
            if limit.unlimited:
                del merged[limit.unit, limit.window]
        _replace(tier, counted, list(merged.values()))


def change_limits(
    channel: "grpc.Channel", name: str, given: "Mapping[Counted, Sequence[Limit]]"
) -> "pb.Tier":
    """Change layers of a tier, leave its others as they are, and return it."""
    tier = _read(channel, name)
    put_limits(tier, given)
    return _send(channel, tier, given)


def remove_user_limits(
    channel: "grpc.Channel", name: str, only: Sequence[LayerName] | None
) -> "pb.Tier":
    """Remove layers of each user from a tier, those named or all, and return it."""
    tier = _read(channel, name)
    removed = {(limit.unit, limit.window) for limit in map(empty_limit, only or LayerName)}
    kept = [limit for limit in tier.user_limits if (limit.unit, limit.window) not in removed]
    _replace(tier, Counted.USER, kept)
    return _send(channel, tier, [Counted.USER])


def _read(channel: "grpc.Channel", name: str) -> "pb.Tier":
    return rpc.TierServiceStub(channel).GetTier(pb.GetTierRequest(name=name))


def _send(channel: "grpc.Channel", tier: "pb.Tier", changed: Iterable[Counted]) -> "pb.Tier":
    mask = field_mask_pb2.FieldMask(paths=[counted.field for counted in changed])
    request = pb.UpdateTierRequest(tier=tier, update_mask=mask)
    return rpc.TierServiceStub(channel).UpdateTier(request)


def _replace(tier: "pb.Tier", counted: Counted, limits: "Sequence[Limit]") -> None:
    # A copy, made before the field is cleared: the limits may be the field's own.
    changed = pb.Tier()
    getattr(changed, counted.field).extend(limits)
    tier.ClearField(counted.field)  # type: ignore[arg-type]  # the stubs list the names, which a property makes
    tier.MergeFrom(changed)
