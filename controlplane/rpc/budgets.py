"""Budgets against the ledger, and when they were used to 80 and 100 percent."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlmodel.ext.asyncio.session import AsyncSession
from tollkeeper.admin.v1 import budget_service_pb2 as pb
from tollkeeper.admin.v1 import budget_service_pb2_grpc

from controlplane.domain.budgets import Budget, budgets_at
from controlplane.domain.counters import Counter, period_at
from controlplane.domain.errors import InvalidError
from controlplane.domain.limits import Limit, LimitUnit
from controlplane.domain.names import SubjectKind, parse_subject
from controlplane.domain.subject_limits import SubjectLimitSet
from controlplane.rpc.changing import AdminServicer
from controlplane.rpc.counters import counter_to_proto
from controlplane.rpc.interception import Context
from controlplane.rpc.limits import subject_id_of
from controlplane.rpc.pages import Page, page_of, row_number_of
from controlplane.rpc.resources import to_timestamp
from controlplane.rpc.subject_names import counted_subject, ledger_id_of, names_of
from controlplane.store import budget_events, usage_sums
from controlplane.store.budget_events import EventPosition
from controlplane.store.budgets import defaults_of, subjects_with_budgets, time_zones_of
from controlplane.store.repositories import Repositories
from controlplane.store.subject_limits import limit_set_of
from controlplane.store.tables import BudgetEventRow


@dataclass(frozen=True, slots=True)
class _Holder:
    """A subject of limits by name, kind and id, with what is set for it and what it has otherwise."""

    name: str
    kind: SubjectKind
    subject_id: str
    own: SubjectLimitSet
    defaults: tuple[Limit, ...] = ()


class BudgetServicer(AdminServicer, budget_service_pb2_grpc.BudgetServiceServicer):
    """Serves BudgetService."""

    async def ListBudgets(
        self, request: pb.ListBudgetsRequest, _context: Context
    ) -> pb.ListBudgetsResponse:
        """Return a page of the subjects that have budgets of their own, or all budgets of one subject.

        What was spent, and the limits, are of one instant.
        """
        page = page_of(request)
        async with self.backend.store.reading() as session:
            if request.subject:
                holders, token = [await _named(Repositories(session), request.subject)], ""
            else:
                rows = await subjects_with_budgets(session, after=page.after_name, size=page.fetch)
                holders = [
                    _Holder(
                        row.name, SubjectKind(row.subject_kind), row.subject_id, limit_set_of(row)
                    )
                    for row in page.cut(rows)
                ]
                token = page.next_token(rows, "name")
            budgets = await _budgets(session, holders, self.backend.clock())
        return pb.ListBudgetsResponse(budgets=budgets, next_page_token=token)

    async def ListBudgetEvents(
        self, request: pb.ListBudgetEventsRequest, _context: Context
    ) -> pb.ListBudgetEventsResponse:
        """Return a page of events; those that are told meanwhile shift nothing."""
        page = page_of(request, keys=2)
        after = _position(page)
        async with self.backend.store.reading() as session:
            rows, subject = Repositories(session), None
            if request.subject:
                subject = await counted_subject(rows, request.subject, field="subject")
            events = await budget_events.list_events(
                session, subject=subject, limit=page.fetch, after=after
            )
            shown = page.cut(events)
            names = await names_of(rows, [(row.subject_kind, row.subject_id) for row in shown])
        return pb.ListBudgetEventsResponse(
            events=[event_to_proto(row, names[row.subject_kind, row.subject_id]) for row in shown],
            next_page_token=page.next_token(events, "reached_at", "id"),
        )


def event_to_proto(row: BudgetEventRow, subject: str) -> pb.BudgetEvent:
    """Return an event as the admin API shows it; `subject` is its name now."""
    counter = Counter(
        SubjectKind(row.subject_kind),
        row.subject_id,
        LimitUnit.SPEND,
        row.period_id,
        row.reset_generation,
    )
    return pb.BudgetEvent(
        subject=subject,
        counter=counter_to_proto(counter),
        percent=row.percent,
        capacity_nanousd=row.capacity_nanousd,
        settled_nanousd=row.settled_nanousd,
        held_nanousd=row.held_nanousd,
        reached_at=to_timestamp(row.reached_at),
    )


async def _named(rows: Repositories, text: str) -> _Holder:
    """Return one subject, with the limits of its tier and of the service.

    Raises:
        InvalidError: It is no subject.
        NotFoundError: There is no such subject.
    """
    subject = parse_subject(text, field="subject")
    subject_id = await subject_id_of(rows, subject)
    defaults = await defaults_of(rows, (subject.kind, subject_id))
    own = limit_set_of(await rows.limits.find(str(subject)))
    return _Holder(str(subject), subject.kind, subject_id, own, defaults)


async def _budgets(
    session: AsyncSession, holders: Sequence[_Holder], now: datetime
) -> list[pb.Budget]:
    """Return the budgets that hold at `now`, in the order of their holders, with what was spent in their running period."""
    zones = await time_zones_of(session, [(each.kind, each.subject_id) for each in holders])
    found = []
    for holder in holders:
        zone = zones.get((holder.kind, holder.subject_id), "")
        subject_id = ledger_id_of(holder.kind, holder.subject_id)
        for budget in budgets_at(now, holder.own, holder.defaults):
            period_id = period_at(budget.window, zone, now)
            counter = Counter(
                holder.kind, subject_id, LimitUnit.SPEND, period_id, budget.reset_generation
            )
            found.append((holder.name, budget, counter))
    spent = await usage_sums.amounts_of(session, [counter for _, _, counter in found])
    return [
        _budget_to_proto(name, budget, counter.period_id, amount)
        for (name, budget, counter), amount in zip(found, spent, strict=True)
    ]


def _budget_to_proto(subject: str, budget: Budget, period_id: str, spent_nanousd: int) -> pb.Budget:
    until = budget.temporary_until
    return pb.Budget(
        subject=subject,
        window=budget.window,  # type: ignore[arg-type]  # a number of the enum
        period_id=period_id,
        capacity_nanousd=budget.capacity_nanousd,
        spent_nanousd=spent_nanousd,
        soft=budget.soft,
        shadow=budget.shadow,
        temporary_until=to_timestamp(until) if until else None,
        reset_generation=budget.reset_generation,
    )


def _position(page: Page) -> EventPosition | None:
    if not page.after:
        return None
    reached_at, event_id = page.after
    number = row_number_of(event_id)
    refusal = InvalidError("this is not a token of this list", field="page_token")
    try:
        instant = datetime.fromisoformat(reached_at)
    except ValueError:
        raise refusal from None
    if instant.tzinfo is None:
        raise refusal
    return EventPosition(instant, number)
