"""Which limits count a call: those of its caller, its address, its endpoint, its model and the service.

What holds for one subject, unit and window at a time is the temporary limit while there is one, else
the subject's own, else its tier's, else the service's default. An unlimited one makes no layer; one that only
lasts for a while makes a shadow of what it takes away, so that this goes on from a true count
afterwards. The reset generation of a counter belongs to the subject, whoever set the limit that it
counts for.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import chain
from typing import Final, NamedTuple

from dataplane.domain.limiting import (
    CALENDAR_WINDOWS,
    Layer,
    LayerPlan,
    SubjectKind,
    Unit,
    Window,
    plan_of,
    public_name,
)
from dataplane.domain.principals import LimitEntry, Principal, Service, SubjectLimits, Tier

# Service-wide subjects and addresses belong to no organization: their days are those of UTC.
SERVICE_TIME_ZONE: Final = "UTC"
_NO_TIER: Final = Tier("")
_NO_LIMITS: Final = SubjectLimits()


class Circumstances(NamedTuple):
    """What counts a call besides its caller; an empty word has no layers."""

    address_prefix: str = ""
    endpoint: str = ""
    model: str = ""


@dataclass(frozen=True, slots=True)
class Entitlements:
    """All limits of a configuration, whoever has them.

    Attributes:
        service: Has the defaults.
        limits: What is configured for a subject, by kind and id: `user:<id>`, `ip:<prefix>`,
            `endpoint:chat`, `model:gpt-4o`, `global`.
        tiers: By name. A caller without a tier, or with one that is not there, has the service's
            defaults.
    """

    service: Service
    limits: Mapping[str, SubjectLimits]
    tiers: Mapping[str, Tier]

    def plan(self, principal: Principal, circumstances: Circumstances, now_ms: int) -> LayerPlan:
        """Return every layer that counts a call at `now_ms`, in Unix milliseconds.

        Raises:
            ValueError: There are more than 24; `most_layers` tells beforehand.
        """
        subjects = [
            *self._subjects_of(principal),
            *self._subjects_around(principal, circumstances),
        ]
        ends = chain.from_iterable(each.ends_ms(now_ms) for each in subjects)
        layers = chain.from_iterable(each.layers(now_ms) for each in subjects)
        raised = chain.from_iterable(each.raised_generations() for each in subjects)
        organization_id = principal.user.organization.organization_id
        return plan_of(layers, min(ends, default=None), organization_id, raised)

    def most_layers(self, principal: Principal) -> dict[SubjectKind, int]:
        """Return how many layers a caller can ever have, by whom they count, circumstances apart."""
        return {
            each.kind: most_layers_of(each.configured, each.defaults)
            for each in self._subjects_of(principal)
        }

    def _tier_of(self, principal: Principal) -> Tier:
        return self.tiers.get(principal.tier, _NO_TIER)

    def _configured(self, subject: str) -> SubjectLimits:
        return self.limits.get(subject, _NO_LIMITS)

    def _subjects_of(self, principal: Principal) -> Iterator["_Subject"]:
        tier, service, user = self._tier_of(principal), self.service, principal.user
        organization_id, zone = user.organization.organization_id, user.organization.time_zone
        yield _Subject(
            SubjectKind.GLOBAL,
            "",
            self._configured(SubjectKind.GLOBAL),
            service.default_global_limits,
            is_public=False,
        )
        yield _Subject(
            SubjectKind.ORGANIZATION,
            organization_id,
            self._configured(f"organization:{organization_id}"),
            time_zone=zone,
        )
        yield _Subject(
            SubjectKind.USER,
            user.user_id,
            self._configured(f"user:{user.user_id}"),
            tier.user_limits if tier.name else service.default_user_limits,
            time_zone=zone,
        )
        yield _Subject(
            principal.kind,
            principal.principal_id,
            self._configured(f"{principal.kind}:{principal.principal_id}"),
            (*tier.credential_limits, *(tier.device_limits if principal.is_device else ())),
            time_zone=zone,
        )

    def _subjects_around(
        self, principal: Principal, circumstances: Circumstances
    ) -> Iterator["_Subject"]:
        prefix, endpoint, model = circumstances
        if prefix:
            yield self._address(principal, prefix)
        if endpoint:
            configured = self._configured(f"endpoint:{endpoint}")
            yield _Subject(SubjectKind.ENDPOINT, endpoint, configured, is_public=False)
        if model:
            configured = self._configured(f"model:{model}")
            yield _Subject(SubjectKind.MODEL, model, configured, is_public=False)

    def _address(self, principal: Principal, prefix: str) -> "_Subject":
        """Return an address.

        What is set for the address itself counts everybody there; what a tier sets counts the callers
        of that tier, so that one tier's traffic behind a shared address does not use up another's.
        """
        tier = self._tier_of(principal)
        digest = address_digest(prefix)
        return _Subject(
            SubjectKind.IP,
            digest,
            self._configured(f"ip:{prefix}"),
            tier.ip_limits,
            default_subject_id=f"{tier.name}-{digest}",
            is_public=principal.is_device,
        )


def address_digest(prefix: str) -> str:
    """Return the id under which an address is counted: counters and records name no addresses."""
    return hashlib.blake2b(prefix.encode(), digest_size=8).hexdigest()


def counts_addresses(tiers: Mapping[str, Tier], principal: Principal) -> bool:
    """Return whether a call of `principal` is counted by its address, whatever the address."""
    tier = tiers.get(principal.tier)
    return tier is not None and bool(tier.ip_limits)


def most_layers_of(configured: SubjectLimits, defaults: Iterable[LimitEntry] = ()) -> int:
    """Return the most layers that a subject can have at any time: temporary ones come and go."""
    steady = {entry.counted: entry for entry in (*defaults, *configured.own)}
    passing = (each.entry for each in configured.temporary)
    return len({each.counted for each in chain(steady.values(), passing) if not each.is_unlimited})


@dataclass(frozen=True, slots=True)
class _Subject:
    """Somebody, or something, that a call is counted for.

    Of `defaults` the last one of a unit and window counts. `default_subject_id` names their counter
    where it is not the subject's own.
    """

    kind: SubjectKind
    subject_id: str
    configured: SubjectLimits
    defaults: tuple[LimitEntry, ...] = ()
    time_zone: str = SERVICE_TIME_ZONE
    default_subject_id: str | None = None
    is_public: bool = True

    def ends_ms(self, now_ms: int) -> Iterator[int]:
        """Yield when a limit of `now_ms` ends: also of one that takes another away."""
        return (each.until_ms for each in self.configured.temporary if now_ms < each.until_ms)

    def layers(self, now_ms: int) -> Iterator[Layer]:
        """Yield what counts a call at `now_ms`."""
        configured = self.configured
        default_id = self.default_subject_id or self.subject_id
        passing = [each.entry for each in configured.temporary if now_ms < each.until_ms]
        generations = dict(configured.generations)
        steady: dict[tuple[str, str], tuple[str, LimitEntry]] = {}
        for subject_id, entries in ((default_id, self.defaults), (self.subject_id, configured.own)):
            steady |= {entry.counted: (subject_id, entry) for entry in entries}
        for entry in (*self.defaults, *configured.own, *passing):
            # Not only of what holds now: a counter must not go back when that changes.
            generation = generations.get(entry.counted, 0)
            generations[entry.counted] = max(generation, entry.reset_generation)
        holding = steady | {entry.counted: (self.subject_id, entry) for entry in passing}
        for counted, (subject_id, entry) in holding.items():
            if not entry.is_unlimited:
                yield self._layer(subject_id, entry, generations[counted])
            elif not (later := steady.get(counted, (subject_id, entry)))[1].is_unlimited:
                yield self._shadow(*later, generations[counted])

    def _shadow(self, subject_id: str, entry: LimitEntry, reset_generation: int) -> Layer:
        """Return a layer that counts for a limit which is suspended, and tells nobody."""
        layer = self._layer(subject_id, entry, reset_generation)
        return replace(layer, is_shadow=True, has_public_figures=False)

    def raised_generations(self) -> Iterator[tuple[str, int]]:
        """Yield the names of what was reset and how often, whether or not it has a layer.

        A limit that is set later counts what its period has used so far: since the last reset.
        """
        for (unit, window), generation in self.configured.generations.items():
            if generation and window in CALENDAR_WINDOWS:
                yield public_name(self.kind, Unit(unit), Window(window)), generation

    def _layer(self, subject_id: str, entry: LimitEntry, reset_generation: int) -> Layer:
        return Layer(
            subject_kind=self.kind,
            subject_id=subject_id,
            unit=Unit(entry.unit),
            window=Window(entry.window),
            capacity=entry.capacity,
            time_zone=self.time_zone,
            reset_generation=reset_generation,
            is_hard=entry.is_hard,
            is_shadow=entry.is_shadow,
            has_public_figures=self.is_public,
            every_ms=entry.every_ms,
            burst=entry.burst,
        )
