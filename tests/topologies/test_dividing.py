"""Plans whose layers two servers count: what is remembered of them, and whose day it is at midnight."""

import gc
from typing import Any

import pytest

from dataplane.admissions import Admission, Intake
from dataplane.bills import BillBook
from dataplane.domain.calls import Usage
from dataplane.domain.estimation import demand_of
from dataplane.domain.limiting import Layer, SubjectKind, Unit, Window, plan_of
from dataplane.domain.routing import route
from dataplane.http.errors import status_of
from dataplane.limits.buckets import SHARED_TAG, Divider, bucket_tag
from dataplane.limits.counters import Keyspace
from tests.maintenance.nodes import now_ms, periods
from tests.pipeline.conftest import Records
from tests.topologies.spread import ACME, Spread
from tests.unit.dataplane.configuration import call, organization, principal, rule, snapshot, user

DAY_MS = 86_400_000
OWN = Layer(SubjectKind.USER, "u_1", Unit.REQUESTS, Window.DAY, 5)
SHARED = Layer(SubjectKind.GLOBAL, "", Unit.REQUESTS, Window.DAY, 5)


@pytest.mark.parametrize("layers", [(OWN,), (SHARED,), (OWN, SHARED), ()])
def test_plans_that_are_used_no_more_are_forgotten(layers: tuple[Layer, ...]) -> None:
    divider = Divider()
    kept = plan_of(layers, organization_id=ACME)
    for _ in range(10):
        divider.halves_of(plan_of(layers, organization_id=ACME))
        assert divider.halves_of(kept) is divider.halves_of(kept)

    gc.collect()

    assert len(divider._halves) == 1


@pytest.mark.parametrize("ahead", [SHARED_TAG, bucket_tag(ACME)])
async def test_a_record_says_of_each_half_in_which_day_it_was_counted(
    on_one_server: Spread, ahead: str
) -> None:
    # One of the servers is in the next day already.
    today, tomorrow = (periods(now_ms() + more)["usage_day"] for more in (0, DAY_MS))
    keyspace = Keyspace(ahead)
    on_one_server.client_of(ahead).set(keyspace.clock, now_ms() + DAY_MS)
    plan = plan_of([OWN, SHARED], organization_id=ACME)
    reservation: Any = await on_one_server.reserve("a", plan)
    counted = {each.layer: each.period_id for each in reservation.standings}
    assert sorted(counted.values()) == [today, tomorrow]

    records = Records()
    book = BillBook(records, "node-1", now_ms, status_of)
    of, asked = snapshot(rule()), call()
    caller = principal(user=user(organization=organization(organization_id=ACME)))
    attempt = route(of, caller, asked, draw=0, now_ms=now_ms())
    demand = demand_of(asked, attempt.price, 100, None)
    intake = Intake(of, caller, asked, plan, attempt, demand, None, None, now_ms())
    bill = book.bill_for(Admission.of(intake, reservation, book.draft_for(intake)))
    bill.settle(Usage(input_total_tokens=1), 200)

    [event] = records.closes
    assert (event.usage_day, event.service_day) == (counted[OWN], counted[SHARED])
