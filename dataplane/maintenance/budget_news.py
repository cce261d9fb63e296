"""Budgets that came to 80 or 100 percent, as they are told to the control plane."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final  # Any: what an answer of the script holds

from dataplane.control.compiling.releasing import Releasing
from dataplane.control.slices import Slices
from dataplane.domain.counters import BudgetEvent, CounterName, Reading
from dataplane.domain.entitlements import address_digest
from dataplane.domain.limiting import Layer, SubjectKind, Unit
from dataplane.domain.principals import Principal, SubjectLimits
from dataplane.domain.sharded_map import MapEdition, ShardedMap
from dataplane.domain.snapshot import Snapshot
from dataplane.limits.counters import Keyspace
from dataplane.maintenance.ports import Reporter

_PERCENTAGES: Final = (80, 100)
_ADDRESS: Final = f"{SubjectKind.IP}:"
# Whose calls are counted, and those that make such calls, as far as their layers differ.
_Callers = Mapping[tuple[SubjectKind, str], tuple[Principal, ...]]


class BudgetNews:
    """Tells of crossings, and again of those that were told: the control plane keeps the first."""

    def __init__(self, keyspace: Keyspace, reporter: Reporter) -> None:
        """Tell `reporter`."""
        self._keyspace = keyspace
        self._reporter = reporter

    def tell(self, crossings: Iterable[Sequence[Any]], now_ms: int) -> None:
        """Tell of `[key, percent, capacity, settled, held]`, as the script answers them."""
        for key, percent, capacity, settled, held in crossings:
            counter = self._keyspace.parse_counter(key)
            if counter is not None:
                self._reporter.note_budget_event(
                    BudgetEvent(counter, percent, capacity, settled, held, now_ms)
                )

    def tell_again(
        self, counter: CounterName, reading: Reading, capacity: int, now_ms: int
    ) -> None:
        """Tell of a budget that has crossed before: whoever told of it may have died with it."""
        for percent in _PERCENTAGES:
            if percent <= reading.told_percent:
                self._reporter.note_budget_event(
                    BudgetEvent(counter, percent, capacity, reading.settled, reading.held, now_ms)
                )


class Capacities:
    """Which counters are moved under one snapshot, and how large budgets are.

    Whose calls a counter counts is known by its subject. Of an address nobody can tell from its digest
    who calls from there: its budgets have no known capacity.
    """

    def __init__(self, snapshot: Snapshot, callers: _Callers) -> None:
        """Keep what `of` found."""
        self.snapshot = snapshot
        self._callers = callers
        self._addresses = {
            address_digest(subject.removeprefix(_ADDRESS)): configured
            for subject, configured in snapshot.limits.items()
            if subject.startswith(_ADDRESS)
        }

    @classmethod
    async def of(cls, snapshot: Snapshot, releasing: Releasing | None = None) -> "Capacities":
        """Return those of a snapshot; it is looked through in slices of a few milliseconds.

        With `releasing` it is also let go of in such slices, when nobody has it any more.
        """
        slices = Slices()
        # A credential and its user.
        expected = 2 * (len(snapshot.keys_by_sha256) + len(snapshot.devices_by_sha256))
        callers: MapEdition[tuple[SubjectKind, str], tuple[Principal, ...]]
        callers = MapEdition(ShardedMap(), expected)
        for principal in principals_of(snapshot):
            user = principal.user
            alone = (principal,)
            callers.put((principal.kind, principal.principal_id), alone)
            callers.put((SubjectKind.ORGANIZATION, user.organization.organization_id), alone)
            callers.put((SubjectKind.GLOBAL, ""), alone)
            # A user's layers depend on the tier of the credential that calls.
            of_user = callers.get((SubjectKind.USER, user.user_id)) or ()
            if all(each.tier != principal.tier for each in of_user):
                callers.put((SubjectKind.USER, user.user_id), (*of_user, principal))
            await slices.breathe()
        found = callers.done()
        if releasing is not None:
            releasing.watch((found,))
        return cls(snapshot, found)

    def is_counted(self, counter: CounterName, now_ms: int) -> bool:
        """Return whether a layer moves a counter at `now_ms`: calls of its subject, or some of them."""
        if counter.subject_kind is SubjectKind.IP:
            return self._is_address_counted(counter, now_ms)
        return any(True for _ in self._layers_of(counter, now_ms))

    def capacity_of(self, counter: CounterName, now_ms: int) -> int:
        """Return the budget of a counter in nano-USD at `now_ms`; 0 of any other counter."""
        if counter.unit is not Unit.SPEND:
            return 0
        for layer in self._layers_of(counter, now_ms):
            return 0 if layer.is_shadow else layer.capacity
        return 0

    def _layers_of(self, counter: CounterName, now_ms: int) -> Iterator[Layer]:
        kind, subject_id = counter.subject_kind, counter.subject_id
        is_shared = kind in (SubjectKind.ENDPOINT, SubjectKind.MODEL)
        endpoint = subject_id if kind is SubjectKind.ENDPOINT else ""
        model = subject_id if kind is SubjectKind.MODEL else ""
        found = (SubjectKind.GLOBAL, "") if is_shared else (kind, subject_id)
        for principal in self._callers.get(found, ()):
            plan = self.snapshot.plan_for(principal, "", endpoint, model, now_ms)
            for layer in plan.layers:
                if (
                    (layer.subject_kind, layer.subject_id) == (kind, subject_id)
                    and (layer.unit, layer.window) == (counter.unit, counter.window)
                    and layer.reset_generation == counter.reset_generation
                ):
                    yield layer

    def _is_address_counted(self, counter: CounterName, now_ms: int) -> bool:
        tier_name, _, digest = counter.subject_id.rpartition("-")
        counted = (counter.unit.value, counter.window.value)
        configured = self._addresses.get(digest, SubjectLimits())
        passing = (each.entry for each in configured.temporary if now_ms < each.until_ms)
        own = [each for each in (*configured.own, *passing) if each.counted == counted]
        if not tier_name:
            return bool(own) and not own[-1].is_unlimited
        tier = self.snapshot.tiers.get(tier_name)
        limits = () if tier is None else tier.ip_limits
        return not own and any(each.counted == counted and not each.is_unlimited for each in limits)


def principals_of(snapshot: Snapshot) -> Iterable[Principal]:
    """Yield who may call, by each of their keys and devices."""
    yield from (key.principal for key in snapshot.keys_by_sha256.values())
    for device in snapshot.devices_by_sha256.values():
        if device.principal is not None:
            yield device.principal
