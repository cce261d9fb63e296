"""The end of a request comes, whatever a provider says that it took."""

from pathlib import Path

import pytest

from dataplane.admissions import Admission, Intake
from dataplane.bills import BillBook
from dataplane.domain.calls import Usage, UsageState
from dataplane.domain.estimation import demand_of
from dataplane.domain.limiting import MAX_AMOUNT
from dataplane.domain.routing import route
from dataplane.http.errors import status_of
from dataplane.limits.emergency import Emergency
from tests.pipeline.conftest import Records
from tests.unit.dataplane.configuration import call, principal, rule, snapshot


@pytest.mark.parametrize(
    ("usage", "charged_nanousd"),
    [
        (Usage(input_total_tokens=-7, output_tokens=2), 0),
        (Usage(output_tokens=2**72), MAX_AMOUNT),
        (Usage(input_total_tokens=9, input_uncached_tokens=-(2**60), output_tokens=1), 0),
    ],
)
def test_amounts_that_no_counter_can_count_are_the_nearest_that_one_can(
    tmp_path: Path, usage: Usage, charged_nanousd: int
) -> None:
    records, emergency = Records(), Emergency(tmp_path, lambda: 0)
    book = BillBook(records, "node-1", lambda: 0, status_of)
    of, caller, asked = snapshot(rule()), principal(), call()
    plan = of.plan_for(caller, "", "chat", "m", 0)
    attempt = route(of, caller, asked, draw=0, now_ms=0)
    demand = demand_of(asked, attempt.price, 100, None)
    intake = Intake(of, caller, asked, plan, attempt, demand, None, None, 0)
    reservation = emergency.reserve("a", plan, demand, "o1", 1)
    bill = book.bill_for(
        Admission.of(intake, reservation, book.draft_for(intake), is_degraded=True)
    )

    bill.settle(usage, 200)

    [event] = records.closes
    assert (event.state, event.charged_nanousd) == (UsageState.SETTLED, charged_nanousd)
    assert not reservation.is_open
    emergency.close()
