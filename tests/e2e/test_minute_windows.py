"""No minute admits more than the limit, wherever it begins and however calls are aimed at its edges."""

from datetime import datetime
from typing import Final

import pytest

from tests.e2e.administration import Administrator
from tests.e2e.edges import SLOT_S, SLOTS, WINDOW_S, Bursts, most_in_slots, most_within
from tests.e2e.stack import Stack
from tests.e2e.tenants import new_tenant

LIMIT: Final = 60
# A row says when the data plane had read the request. Redis admitted it after that, within the 0.1 s that
# a caller waits for it; a busy machine may take longer to ask. Two that are further apart than a window
# less this may be in different windows of Redis; all others are in one.
TOLERANCE_S: Final = 0.5


@pytest.mark.parametrize(
    ("seconds", "burst"),
    [
        # Less than a minute: one window, which must be filled exactly.
        (5.0, 40),
        pytest.param(600.0, 40, marks=pytest.mark.long),
    ],
)
async def test_no_60_seconds_admit_more_than_a_minute_limit(
    stack: Stack, seconds: float, burst: int
) -> None:
    tenant = new_tenant(Administrator(stack))
    tenant.admin("limit", "set", "--key", tenant.key, "--requests-per-minute", str(LIMIT))
    [key_id] = {each["id"] for each in tenant.admin("key", "list") if each["name"] == tenant.key}
    bursts = Bursts(tenant, "key_requests_per_minute", key_id)

    await bursts.run(seconds, burst)

    # A busy machine may keep Redis from answering in time. What such a call took of the minute stays taken.
    assert bursts.seen.keys() <= {200, 429, 503}
    assert bursts.seen[503] * 100 <= bursts.seen.total()
    rows = tenant.ledger(bursts.seen[200])
    # By the limiter's own time, to the slot: a window of 60 s meets 13 of them.
    assert 0 <= sum(bursts.slots.values()) - len(rows) <= bursts.seen[503]
    assert most_in_slots(bursts.slots, SLOTS) <= LIMIT
    # By what the ledger says.
    times = [datetime.fromisoformat(row["started_at"]).timestamp() for row in rows]
    assert most_within(times, WINDOW_S - TOLERANCE_S) <= LIMIT
    # And nobody is refused longer than that takes: a window and a slot after it was filled, it is free.
    windows = max(1, int(seconds // (WINDOW_S + SLOT_S)))
    assert len(rows) >= LIMIT * windows - bursts.seen[503]
