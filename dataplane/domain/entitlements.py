"""Which limits a key has: its own, its user's, its organization's and the service's."""

from collections.abc import Iterable, Mapping

from dataplane.domain.limiting import Layer, SubjectKind, Unit, Window
from dataplane.domain.principals import ApiKey, LimitEntry, Service

# The service-wide subject belongs to no organization: its days are those of UTC.
SERVICE_TIME_ZONE = "UTC"


def layers_for(
    service: Service, limits: Mapping[str, tuple[LimitEntry, ...]], key: ApiKey
) -> tuple[Layer, ...]:
    """Return every layer that counts a call of `key`.

    `limits` maps a subject (`user:<id>`, `global`) to what is configured for it. A default
    applies where the subject has nothing of the same unit and window; a user with a tier has
    the tier's layers instead of the defaults. An unlimited entry takes a default away and makes
    no layer.
    """
    user, organization = key.user, key.user.organization
    user_defaults = () if user.tier else service.default_user_limits
    zone = organization.time_zone
    return (
        *_layers(
            SubjectKind.GLOBAL,
            "",
            SERVICE_TIME_ZONE,
            _merged(service.default_global_limits, limits.get("global", ())),
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
        *_layers(SubjectKind.KEY, key.key_id, zone, limits.get(f"key:{key.key_id}", ())),
    )


def _merged(defaults: Iterable[LimitEntry], own: Iterable[LimitEntry]) -> tuple[LimitEntry, ...]:
    entries = {(entry.unit, entry.window): entry for entry in defaults}
    entries.update({(entry.unit, entry.window): entry for entry in own})
    return tuple(entries.values())


def _layers(
    kind: SubjectKind, subject_id: str, time_zone: str, entries: Iterable[LimitEntry]
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
            )
