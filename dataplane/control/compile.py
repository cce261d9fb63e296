"""From what was received to the snapshot that requests see, or the reasons why not.

Structural resources (service, organizations, tiers, providers, credentials, routers, limits) that
cannot be read, or that refer to nothing, refuse the whole transfer: half a routing table is worse than
yesterday's. Users, keys, devices and prices are leaves: a bad one is set aside, so that it denies, and the
answer names it.

A change is compiled into what was compiled before: what it touches is read again, and what refers to
that (an organization's users, their keys and devices; a credential's provider, its routers). All else is in
the next snapshot as the same objects. What comes of it does not depend on the way: it is what compiling
everything at once would give.
"""

from dataclasses import dataclass, field

from tollkeeper.config.v1 import resources_pb2 as pb

from dataplane.control.compiling.callers import DEVICES, KEYS, CallersDraft
from dataplane.control.compiling.draft import Draft
from dataplane.control.compiling.leaves import prices_of, users_of
from dataplane.control.compiling.limits import LimitsDraft
from dataplane.control.compiling.outcome import MAX_PROBLEMS, Compiled, InvalidConfigurationError
from dataplane.control.compiling.releasing import Releasing
from dataplane.control.compiling.state import Limits, Quarantined, State, maps_of
from dataplane.control.compiling.structure import Structure
from dataplane.control.compiling.transition import transition_of
from dataplane.control.holdings import Change, Holdings
from dataplane.control.read_principals import read_tier
from dataplane.control.slices import Slices
from dataplane.domain.entitlements import Entitlements
from dataplane.domain.layer_bounds import LayerBounds
from dataplane.domain.limiting import SubjectKind
from dataplane.domain.plan_cache import MOST_PLANS, PlanCache
from dataplane.domain.principals import Principal, Service, Tier
from dataplane.domain.sharded_map import ShardedMap
from dataplane.domain.snapshot import Position, Snapshot

__all__ = [
    "MAX_PROBLEMS",
    "Compiled",
    "Compiler",
    "InvalidConfigurationError",
    "Quarantined",
]

# Of so many a list is sorted without being felt.
_MOST_SORTED = 2_000


class Compiler:
    """Compiles changes into what was compiled before."""

    def __init__(self) -> None:
        """Begin with nothing."""
        self._state = State()
        self._releasing = Releasing()

    async def compile(self, holdings: Holdings, change: Change, applied_at_ms: int) -> Compiled:
        """Return what comes of `change` over `holdings`, which is what the last commit was of.

        It is built beside the running snapshot, in slices of a few milliseconds. Neither argument may
        change meanwhile. Nothing of the compiler changes: whoever cancels this, or is refused, goes
        on from where they were.

        Args:
            holdings: What is in force, without the change.
            change: What becomes of it.
            applied_at_ms: Unix milliseconds. Temporary limits that are over by then are left out, also
                those that the change does not touch.

        Raises:
            InvalidConfigurationError: A structural resource is bad, or refers to nothing.
        """
        slices = Slices()
        transition = await transition_of(holdings, change, slices)
        draft = Draft(self._state, transition, slices)
        return await _Assembly(draft, change.position, applied_at_ms).compiled()

    def commit(self, compiled: Compiled) -> None:
        """Have the next change compiled into `compiled`; it does not await.

        What nobody uses any more of what was before is given back in small steps.

        Raises:
            ValueError: Something else was committed since it was compiled.
        """
        if compiled.origin is not self._state:
            raise ValueError("it was compiled into something else than what was committed last")
        before, self._state = self._state, compiled.state
        kept = set(map(id, maps_of(compiled.state)))
        self._releasing.watch(each for each in maps_of(before) if id(each) not in kept)


@dataclass(slots=True)
class _Assembly:
    """Puts one state together, in the order in which its parts depend on each other."""

    draft: Draft
    position: Position
    applied_at_ms: int
    structure: Structure = field(init=False)
    limits: Limits = field(init=False)
    tiers: ShardedMap[str, Tier] = field(init=False)

    async def compiled(self) -> Compiled:
        draft, origin = self.draft, self.draft.origin
        self.structure = structure = Structure(draft)
        await structure.build()
        limits_draft = LimitsDraft(draft, self.applied_at_ms)
        self.limits = await limits_draft.build()
        self.tiers = await draft.rebuilt(
            pb.RESOURCE_KIND_TIER, pb.Tier, origin.tiers, read_tier, draft.refuse
        )
        if draft.problems:
            raise InvalidConfigurationError(draft.problems)
        users = await users_of(draft, structure.organizations)
        prices, book = await prices_of(draft)
        entitlements = Entitlements(self._service(), self.limits.by_subject, self.tiers)
        bounds = LayerBounds(entitlements, self.limits.shapes)
        otherwise_limited = await limits_draft.callers_otherwise_limited()
        shared = bounds.shared()
        among = (users, structure.routers, structure.routers_gone, bounds)
        is_anybody_otherwise = shared != origin.shared
        keys = await CallersDraft(draft, KEYS, origin.keys, *among).build(
            otherwise_limited, is_anybody_otherwise=is_anybody_otherwise
        )
        devices = await CallersDraft(draft, DEVICES, origin.devices, *among).build(
            otherwise_limited, is_anybody_otherwise=is_anybody_otherwise
        )
        aside = draft.aside.done()
        plans, call_plans = self._plans_for(len(keys.by_sha256) + len(devices.by_sha256))
        state = State(
            services=structure.services,
            organizations=structure.organizations,
            credentials=structure.credentials,
            providers=structure.providers,
            routers=structure.routers,
            tiers=self.tiers,
            users=users,
            limits=self.limits,
            prices=prices,
            book=book,
            keys=keys,
            devices=devices,
            aside=aside,
            quarantined=await self._quarantined(aside),
            referrers={
                kind: await edition.done(draft.slices) for kind, edition in draft.references.items()
            },
            shared=shared,
            fail_open=structure.fail_open,
            plans=plans,
            call_plans=call_plans,
        )
        return Compiled(self._snapshot(state), state.quarantined, state, origin)

    def _service(self) -> Service:
        return self.structure.services.get("service", Service())

    def _snapshot(self, state: State) -> Snapshot:
        return Snapshot(
            position=self.position,
            service=self._service(),
            keys_by_sha256=state.keys.by_sha256,
            routers=state.routers,
            prices=state.book,
            limits=state.limits.by_subject,
            has_address_limits=bool(state.limits.shapes.of(SubjectKind.IP)),
            limited_endpoints=state.limits.endpoints,
            limited_models=state.limits.models,
            has_fail_open=state.fail_open > 0,
            devices_by_sha256=state.devices.by_sha256,
            tiers=state.tiers,
            applied_at_ms=self.applied_at_ms,
            _plans=state.plans,
            _call_plans=state.call_plans,
        )

    def _plans_for(
        self, callers: int
    ) -> tuple[PlanCache[Principal], PlanCache[tuple[Principal, str, str, str]]]:
        """Return those of before where nothing that plans follow from has changed, else empty ones."""
        origin = self.draft.origin
        if (
            origin.services.get("service", Service()) == self._service()
            and origin.limits.by_subject is self.limits.by_subject
            and origin.tiers is self.tiers
            and callers <= origin.plans.most
        ):
            return origin.plans, origin.call_plans
        # Room for those who will be there, and who were: a caller that changes is another one.
        return PlanCache(2 * callers + MOST_PLANS), PlanCache()

    async def _quarantined(
        self, aside: ShardedMap[tuple[int, str], Quarantined]
    ) -> tuple[Quarantined, ...]:
        if aside is self.draft.origin.aside:
            return self.draft.origin.quarantined
        found: list[Quarantined] = []
        for part in aside.parts():
            found.extend(part.values())
            await self.draft.slices.breathe()
        if len(found) <= _MOST_SORTED:
            found.sort(key=lambda each: (each.kind, each.resource_id))
        return tuple(found)
