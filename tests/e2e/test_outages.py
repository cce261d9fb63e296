"""While Redis does not answer nobody overspends: callers are refused at once, or served within emergency limits."""

import asyncio
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Final

import pytest

from tests.e2e.accidents import stopped_redis
from tests.e2e.administration import AGREEMENT_S, Administrator
from tests.e2e.calls import Answer, Streams, client_of
from tests.e2e.conftest import SETTINGS
from tests.e2e.counting import Counters
from tests.e2e.leaks import leaks
from tests.e2e.stack import RefusedError, Stack
from tests.e2e.tenants import AMPLE, Tenant, new_tenant
from tests.e2e.timing import Timed, TimedClient, percentile, timed_client
from tests.e2e.waiting import eventually, eventually_async

TENTH: Final = "mock-tokens-1"
"""A model whose every call costs a tenth of a dollar, not more and not less."""
TENTH_NANOUSD: Final = 100_000_000
CHEAP: Final = "mock-tokens-2"
# Outlasts the outage.
LONG: Final = "mock-tokens-250-pace-20"
CALLERS_EACH: Final = 10
PAUSE_S: Final = 0.05
# What callers are promised: from the moment the data plane has read the request.
REFUSED_WITHIN_MS: Final = 150
EXACT_AGAIN_S: Final = 3.0
MINUTE: Final = 20
SHARE: Final = MINUTE // 2
OUTAGE: Final = (503, "limits_unavailable")


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A stack whose Redis is stopped; it goes on after each test."""
    running = Stack(tmp_path_factory.mktemp("outages"), environ=SETTINGS)
    yield running
    running.stop()
    assert leaks(running) == []


@pytest.fixture(scope="module")
def admin(stack: Stack) -> Administrator:
    """Its administrator, who has priced `TENTH`."""
    administrator = Administrator(stack)
    administrator(*("price", "set", "--provider", "mock", "--model", TENTH, "--request-usd", "0.1"))
    return administrator


@dataclass(frozen=True, slots=True)
class Outage:
    """What callers met while Redis was stopped, and after it went on.

    Attributes:
        closed: Whose calls are refused meanwhile; they called all the time.
        opened: Whose calls are not, up to 20 a minute.
        poor: Whose neither, with a soft budget of 20 USD a month, at a tenth of a dollar a call.
        of_closed: Their answers, from before until after.
        of_opened: Theirs, by replica, while it lasted.
        of_poor: Theirs, likewise.
        streams: Two that were open all the time.
        recovered_s: So long after it went on both replicas admitted as always.
        counted_s: So long after it went on the counters held what was served to the poor meanwhile.
    """

    closed: Tenant
    opened: Tenant
    poor: Tenant
    of_closed: list[Timed]
    of_opened: list[list[Timed]]
    of_poor: list[list[Timed]]
    streams: list[Answer]
    recovered_s: float
    counted_s: float

    @property
    def refused(self) -> list[Timed]:
        return [each for each in self.of_closed if each.status != 200]


@pytest.fixture(
    scope="module", params=[1.5, pytest.param(30.0, marks=pytest.mark.long)], ids="{}s".format
)
def outage(request: pytest.FixtureRequest, stack: Stack, admin: Administrator) -> Outage:
    """Stop Redis for some seconds under load."""
    closed = new_tenant(admin, "--total-budget-usd", "100")
    is_open = ("--on-limits-unavailable", "open")
    limited = (*AMPLE, "--requests-per-minute", str(MINUTE))
    opened = new_tenant(admin, *is_open, of_user=limited)
    poor = new_tenant(admin, *is_open, "--monthly-budget-usd", "20", "--soft")
    return asyncio.run(_outage(stack, closed, opened, poor, request.param))


async def _outage(
    stack: Stack, closed: Tenant, opened: Tenant, poor: Tenant, lasts_s: float
) -> Outage:
    is_over = asyncio.Event()
    async with timed_client() as client, client_of(closed.api_key) as streaming:
        streams = [Streams(streaming, url, LONG, 1) for url in stack.base_urls]
        for each in streams:
            await each.all_started()
        load = [
            asyncio.create_task(_calls(client, url, closed, is_over))
            for url in stack.base_urls * CALLERS_EACH
        ]
        ready = [await client.chat(url, closed.headers, CHEAP) for url in stack.base_urls]
        assert {each.status for each in ready} == {200}

        with stopped_redis(stack):
            began = time.monotonic()
            of_opened = await _at_each(client, stack, opened, MINUTE)
            of_poor = await _at_each(client, stack, poor, 3, TENTH)
            await asyncio.sleep(max(0.0, began + lasts_s - time.monotonic()))
        ended = time.monotonic()

        for url, tenant in product(stack.base_urls, (opened, closed)):
            after = ready if tenant is closed else []
            await eventually_async(partial(_is_exact, client, url, tenant, after))
        recovered_s = time.monotonic() - ended
        served = sum(each.status == 200 for part in of_poor for each in part)
        is_counted = partial(_has_counted, stack, poor, served, served * TENTH_NANOUSD)
        await eventually_async(partial(asyncio.to_thread, is_counted))
        counted_s = time.monotonic() - ended
        is_over.set()
        of_closed = [answer for each in await asyncio.gather(*load) for answer in each]
        left = [answer for each in streams for answer in await each.answers()]
    of_closed += ready
    return Outage(closed, opened, poor, of_closed, of_opened, of_poor, left, recovered_s, counted_s)


async def _calls(
    client: TimedClient, base_url: str, tenant: Tenant, is_over: asyncio.Event
) -> list[Timed]:
    answers: list[Timed] = []
    while not is_over.is_set():
        answers.append(await client.chat(base_url, tenant.headers, CHEAP))
        await asyncio.sleep(PAUSE_S)
    return answers


async def _at_each(
    client: TimedClient, stack: Stack, tenant: Tenant, number: int, model: str = CHEAP
) -> list[list[Timed]]:
    """Make so many calls at once at each replica; return their answers by replica."""
    return [
        await asyncio.gather(*(client.chat(url, tenant.headers, model) for _ in range(number)))
        for url in stack.base_urls
    ]


async def _is_exact(
    client: TimedClient, base_url: str, tenant: Tenant, answers: list[Timed]
) -> bool:
    """Return whether a call is admitted as always; with its answer among `answers`."""
    answer = await client.chat(base_url, tenant.headers, CHEAP)
    answers.append(answer)
    return answer.status == 200 and not answer.is_degraded


def test_calls_of_a_fail_closed_organization_are_refused_at_once_and_charged_nothing(
    outage: Outage, stack: Stack
) -> None:
    refused = outage.refused
    assert len(refused) > 20 * CALLERS_EACH
    assert {(each.status, each.code) for each in refused} == {OUTAGE}
    assert {each.retry_after for each in refused} == {"5"}
    own_ms = [each.took_ms - each.late_ms for each in refused]
    assert percentile(own_ms, 99) <= REFUSED_WITHIN_MS
    # No degraded answer to whom that was not allowed.
    assert not any(each.is_degraded for each in outage.of_closed)

    admitted = {each.request_id for each in outage.of_closed if each.status == 200}
    admitted |= {each.request_id for each in outage.streams}
    rows = outage.closed.ledger(len(admitted))
    assert {row["id"] for row in rows} == admitted
    with Counters(stack) as counters:
        spend = counters.spend("organization_spend_total", outage.closed.organization_id)
        assert spend == (sum(row["charged_nanousd"] for row in rows), 0)
        assert counters.count("user_requests_per_day", outage.closed.user_id) == len(rows)
        assert counters.in_flight() == 0


def test_streams_in_flight_are_not_disturbed(outage: Outage) -> None:
    assert [(each.status, each.is_whole) for each in outage.streams] == [(200, True)] * 2


def test_a_fail_open_organization_is_served_within_its_share_of_each_minute_limit(
    outage: Outage,
) -> None:
    for answers in outage.of_opened:
        seen = Counter((each.status, each.code, each.is_degraded) for each in answers)
        assert seen == {(200, "", True): SHARE, (429, "rate_limit_exceeded", True): SHARE}


def test_an_emergency_costs_at_most_the_emergency_budget(outage: Outage) -> None:
    # A hundredth of 20 USD, by two replicas: a call of a tenth of a dollar each.
    for answers in outage.of_poor:
        seen = Counter((each.status, each.code, each.is_degraded) for each in answers)
        assert seen == {(200, "", True): 1, (*OUTAGE, False): 2}


def test_both_replicas_admit_as_always_within_3_seconds(outage: Outage) -> None:
    assert outage.recovered_s <= EXACT_AGAIN_S


def test_what_was_served_meanwhile_is_counted_within_3_seconds(outage: Outage) -> None:
    assert outage.counted_s <= EXACT_AGAIN_S


def test_what_was_served_meanwhile_is_in_the_ledger_and_comes_into_the_counters(
    outage: Outage, stack: Stack
) -> None:
    for tenant, answers in ((outage.opened, outage.of_opened), (outage.poor, outage.of_poor)):
        served = {each.request_id for part in answers for each in part if each.status == 200}
        refused = {each.request_id for part in answers for each in part if each.status != 200}
        rows = {row["id"]: row for row in tenant.ledger_has(len(served))}
        assert served <= rows.keys()
        assert not refused & rows.keys()
        assert {rows[each]["state"] for each in served} == {"settled"}
        charged = sum(row["charged_nanousd"] for row in rows.values())
        eventually(partial(_has_counted, stack, tenant, len(rows), charged), AGREEMENT_S)


def _has_counted(stack: Stack, tenant: Tenant, requests: int, nanousd: int) -> bool:
    with Counters(stack) as counters:
        if not counters.has_begun("user_spend_per_month", tenant.user_id):
            return False
        spend = counters.spend("user_spend_per_month", tenant.user_id)
        count = counters.count("user_requests_per_day", tenant.user_id)
    return (spend, count) == ((nanousd, 0), requests)


@pytest.mark.long
def test_nothing_is_left_to_verify_after_an_outage(outage: Outage) -> None:
    outage.closed.admin.verified()


def test_a_request_that_was_served_meanwhile_is_explained_as_such(
    outage: Outage, admin: Administrator
) -> None:
    served = next(each for each in outage.of_opened[0] if each.status == 200)

    explained = admin("explain", served.request_id)

    assert (explained["state"], explained["is_degraded"]) == ("settled", True)
    layers = {layer["layer"]: layer for layer in explained["layers"]}
    # Nobody asked the others.
    assert list(layers) == ["user_requests_per_minute"]
    minute = layers["user_requests_per_minute"]
    assert (minute["capacity"], minute["reserved"]) == (MINUTE, 1)
    assert minute["remaining_before"] <= SHARE
    assert "served within emergency limits" in " ".join(explained["why"])


def test_an_organization_with_a_hard_budget_is_never_open(
    stack: Stack, admin: Administrator
) -> None:
    with pytest.raises(RefusedError):
        admin(
            "org", "create", "daring", "--on-limits-unavailable", "open", "--daily-budget-usd", "5"
        )
    tenant = new_tenant(admin, "--on-limits-unavailable", "open")
    with pytest.raises(RefusedError):
        admin("limit", "set", "--org", tenant.organization, "--monthly-budget-usd", "5")
