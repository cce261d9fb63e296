"""Which limits a caller has: its own, its user's, its organization's, its address' and the service's."""

import hashlib
from collections.abc import Iterable, Mapping

from dataplane.domain.limiting import Layer, SubjectKind, Unit, Window
from dataplane.domain.principals import LimitEntry, Principal, Service, Tier

# The service-wide subject belongs to no organization: its days are those of UTC.
SERVICE_TIME_ZONE = "UTC"
_NO_TIER = Tier("")
Limits = Mapping[str, tuple[LimitEntry, ...]]


def layers_for(
    service: Service,
    limits: Limits,
    tiers: Mapping[str, Tier],
    principal: Principal,
    address_prefix: str = "",
) -> tuple[Layer, ...]:
    """Return every layer that counts a call of `principal` from an address.

    `limits` maps a subject (`user:<id>`, `ip:<prefix>`, `global`) to what is configured for it. It
    takes the place of a tier's layer of the same unit and window, which takes the place of the
    service's default; an unlimited entry takes it away and makes no layer. A caller without a tier,
    or with one that is not there, has the service's defaults. Without an address prefix there are no
    layers of addresses.
    """
    user, organization = principal.user, principal.user.organization
    tier = tiers.get(principal.tier, _NO_TIER)
    user_defaults = tier.user_limits if tier.name else service.default_user_limits
    zone = organization.time_zone
    own = f"{principal.kind}:{principal.principal_id}"
    return (
        *_layers(
            SubjectKind.GLOBAL,
            "",
            SERVICE_TIME_ZONE,
            _merged(service.default_global_limits, limits.get("global", ())),
            is_public=False,
        ),
        *_layers(
            SubjectKind.ORGANIZATION,
            organization.organization_id,
            zone,
            limits.get(f"organization:{organization.organization_id}", ()),
        ),
        *_layers(
            SubjectKind.USER,
            user.user_id,
            zone,
            _merged(user_defaults, limits.get(f"user:{user.user_id}", ())),
        ),
        *_layers(
            principal.kind,
            principal.principal_id,
            zone,
            _merged(_credential_limits(tier, principal), limits.get(own, ())),
        ),
        *_address_layers(limits, tier, principal, address_prefix),
    )


def counts_addresses(tiers: Mapping[str, Tier], principal: Principal) -> bool:
    """Return whether a call of `principal` is counted by its address, whatever the address."""
    tier = tiers.get(principal.tier)
    return tier is not None and bool(tier.ip_limits)


def _credential_limits(tier: Tier, principal: Principal) -> tuple[LimitEntry, ...]:
    if not principal.is_device:
        return tier.credential_limits
    return _merged(tier.credential_limits, tier.device_limits)


def _address_layers(
    limits: Limits, tier: Tier, principal: Principal, prefix: str
) -> Iterable[Layer]:
    """Return the layers of an address.

    What is set for the address itself counts everybody there; what a tier sets counts the callers of
    that tier, so that one tier's traffic behind a shared address does not use up another's. An address
    belongs to no organization: its days are those of UTC.
    """
    if not prefix:
        return
    own = limits.get(f"ip:{prefix}", ())
    given = {(entry.unit, entry.window) for entry in own}
    defaults = [each for each in tier.ip_limits if (each.unit, each.window) not in given]
    digest = hashlib.blake2b(prefix.encode(), digest_size=8).hexdigest()
    is_public = principal.is_device
    yield from _layers(SubjectKind.IP, digest, SERVICE_TIME_ZONE, own, is_public=is_public)
    yield from _layers(
        SubjectKind.IP, f"{tier.name}-{digest}", SERVICE_TIME_ZONE, defaults, is_public=is_public
    )


def _merged(defaults: Iterable[LimitEntry], own: Iterable[LimitEntry]) -> tuple[LimitEntry, ...]:
    entries = {(entry.unit, entry.window): entry for entry in defaults}
    entries.update({(entry.unit, entry.window): entry for entry in own})
    return tuple(entries.values())


def _layers(
    kind: SubjectKind,
    subject_id: str,
    time_zone: str,
    entries: Iterable[LimitEntry],
    *,
    is_public: bool = True,
) -> Iterable[Layer]:
    for entry in entries:
        if not entry.is_unlimited:
            yield Layer(
                subject_kind=kind,
                subject_id=subject_id,
                unit=Unit(entry.unit),
                window=Window(entry.window),
                capacity=entry.capacity,
                time_zone=time_zone,
                reset_generation=entry.reset_generation,
                is_hard=entry.is_hard,
                is_shadow=entry.is_shadow,
                has_public_figures=is_public,
            )
