"""A request sees one revision from its first byte to its bill, however many come while it is served.

Each revision changes, in one transaction, what an alias stands for and what that costs. The ledger says of every
request which revision it saw, which model it asked for, and at which price; the caller sees how long the answer is.
All of that must be of one revision, and of one that was in force on that node while the request was served.
"""

import asyncio
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import pytest
from google.protobuf.duration_pb2 import Duration
from tollkeeper.admin.v1 import configuration_service_pb2 as configuration_pb
from tollkeeper.admin.v1 import price_service_pb2 as price_pb
from tollkeeper.admin.v1 import router_service_pb2 as router_pb
from tollkeeper.admin.v1 import usage_service_pb2 as admin_usage_pb
from tollkeeper.admin.v1 import usage_service_pb2_grpc as admin_usage_grpc
from tollkeeper.common.v1 import rates_pb2
from tollkeeper.usage.v1 import usage_service_pb2 as usage_pb

from tests.configuration.planes import PROVIDER, ROUTER, Caller, Planes, planes_in
from tests.e2e.calls import Answer, Client, client_of
from tests.e2e.waiting import eventually_async
from tests.rpc.admin_api import AdminApi, mask

NODES: Final = ("first", "second")
# Of each node.
CALLERS: Final = 3
# States to choose from: an answer has 1 to 8 tokens, and lasts as many hundredths of a second.
STATES: Final = range(8)
ALIAS: Final = "model-of-the-day"
INPUT_NANOUSD: Final = 10**9
WAIT: Final = Duration(seconds=15)
_LEDGER_S: Final = 60.0
_CHARACTERS_PER_TOKEN: Final = 4
REVISIONS = [
    pytest.param(40, id="small"),
    pytest.param(1_000, id="full", marks=pytest.mark.long),
]


@dataclass(frozen=True, slots=True)
class Revision:
    """A revision that was published: what it says, and between when and when it came into force on all nodes."""

    number: int
    state: int
    began_at: float
    ended_at: float


@dataclass(frozen=True, slots=True)
class Seen:
    """One answer: who gave it, and from when to when it took."""

    node: str
    began_at: float
    ended_at: float
    answer: Answer


@dataclass(slots=True)
class Story:
    """What happened."""

    revisions: list[Revision] = field(default_factory=list)
    answers: list[Seen] = field(default_factory=list)
    is_over: bool = False


def model_of(state: int) -> str:
    return f"mock-tokens-{state + 1}-pace-10"


def rates_of(state: int) -> rates_pb2.Rates:
    return rates_pb2.Rates(
        input_nanousd_per_million=INPUT_NANOUSD, output_nanousd_per_million=(state + 3) * 10**9
    )


@pytest.mark.parametrize("revisions", REVISIONS)
async def test_every_answer_is_of_one_revision_which_was_in_force_while_it_was_given(
    revisions: int, tmp_path: Path
) -> None:
    async with planes_in(tmp_path) as planes:
        caller = await planes.new_caller()
        states = await prepared(planes.api)
        running = [await planes.started(node) for node in NODES]
        story = Story()
        await publish(planes.api, states, 0, story)
        await planes.until_known(caller, *running)

        async with client_of(caller.api_key) as client:
            load = [
                asyncio.create_task(call(client, each.node_id, each.base_url, story))
                for each in running
                for _ in range(CALLERS)
            ]
            for state in chosen(revisions):
                await publish(planes.api, states, state, story)
            story.is_over = True
            await asyncio.gather(*load)

        records = await ledger_of(planes, caller, len(story.answers))
    check(story, records)
    report(story)


async def prepared(api: AdminApi) -> list[int]:
    """Make each state once; return the revisions that hold them."""
    router = await api.routers.GetRouter(router_pb.GetRouterRequest(name=ROUTER))
    found: list[int] = []
    for state in STATES:
        rule = router_pb.Rule(id=router.rules[0].id, aliases={ALIAS: model_of(state)})
        await api.routers.UpdateRule(
            router_pb.UpdateRuleRequest(rule=rule, update_mask=mask("aliases"))
        )
        price = price_pb.Price(provider=PROVIDER, model="mock-*", rates=rates_of(state))
        found.append((await api.prices.SetPrice(price_pb.SetPriceRequest(price=price))).revision)
    return found


def chosen(revisions: int) -> list[int]:
    """Return a state for each revision, another one than before, the same ones each time."""
    rng, states = random.Random(5), [0]
    while len(states) <= revisions:
        states.append(rng.choice([each for each in STATES if each != states[-1]]))
    return states[1:]


async def publish(api: AdminApi, states: Sequence[int], state: int, story: Story) -> None:
    """Return to a state in one transaction, and wait until both nodes have it in force."""
    began_at = time.monotonic()
    done = await api.configuration.RollbackConfiguration(
        configuration_pb.RollbackConfigurationRequest(
            revision=states[state], wait_for_propagation=WAIT
        )
    )
    assert {each.kind for each in done.changes} == {"rule", "price"}
    assert not done.propagation.missing
    story.revisions.append(Revision(done.revision, state, began_at, time.monotonic()))


async def call(client: Client, node: str, base_url: str, story: Story) -> None:
    """Ask for the alias again and again, with and without a stream in turn."""
    is_stream = False
    while not story.is_over:
        began_at = time.monotonic()
        answer = await client.chat(base_url, model=ALIAS, stream=is_stream)
        story.answers.append(Seen(node, began_at, time.monotonic(), answer))
        is_stream = not is_stream


async def ledger_of(planes: Planes, caller: Caller, count: int) -> dict[str, usage_pb.UsageRecord]:
    """Return the caller's rows of the ledger as soon as there are `count`."""
    stub = admin_usage_grpc.UsageServiceStub(planes.api.channel)
    wanted = admin_usage_pb.RequestFilter(user=caller.user)

    async def rows() -> list[usage_pb.UsageRecord]:
        found: list[usage_pb.UsageRecord] = []
        request = admin_usage_pb.ListRequestsRequest(filter=wanted, page_size=1_000)
        while True:
            page = await stub.ListRequests(request)
            found += page.requests
            if not page.next_page_token:
                return found if len(found) >= count else []
            request.page_token = page.next_page_token

    found = await eventually_async(rows, _LEDGER_S)
    by_id = {each.request_id: each for each in found}
    assert len(by_id) == len(found) == count
    return by_id


def check(story: Story, records: dict[str, usage_pb.UsageRecord]) -> None:
    places = {each.number: place for place, each in enumerate(story.revisions)}
    assert len(places) == len(story.revisions)
    for seen in sorted(story.answers, key=lambda each: each.ended_at):
        assert (seen.answer.status, seen.answer.is_whole) == (200, True), seen
        record = records[seen.answer.request_id]
        assert record.node_id == seen.node
        place = places[record.config_revision]
        check_facts(story.revisions[place], record, seen.answer)
        check_time(story.revisions, place, seen)
    for node in NODES:
        check_order([each for each in story.answers if each.node == node], records)
    assert {each.node for each in story.answers} == set(NODES)


def check_facts(revision: Revision, record: usage_pb.UsageRecord, answer: Answer) -> None:
    """Check that the model, the price, the bill and the answer are those of one revision."""
    rates = rates_of(revision.state)
    assert record.state == usage_pb.USAGE_STATE_SETTLED
    assert (record.requested_model, record.model) == (ALIAS, model_of(revision.state))
    # The price itself is new with each revision.
    assert record.price_revision == revision.number
    assert record.rates.input_nanousd_per_million == rates.input_nanousd_per_million
    assert record.rates.output_nanousd_per_million == rates.output_nanousd_per_million
    assert record.output_tokens == revision.state + 1
    assert record.charged_nanousd * 10**6 == (
        record.input_total_tokens * rates.input_nanousd_per_million
        + record.output_tokens * rates.output_nanousd_per_million
    )
    if record.stream:
        assert len(answer.text) == (revision.state + 1) * _CHARACTERS_PER_TOKEN
    else:
        assert f'"completion_tokens":{revision.state + 1},' in answer.body.replace(" ", "")


def check_time(revisions: Sequence[Revision], place: int, seen: Seen) -> None:
    """Check that a revision was in force between the request's beginning and its end.

    It was not before somebody asked for it, and not after the next one was in force everywhere.
    """
    assert revisions[place].began_at <= seen.ended_at
    if place + 1 < len(revisions):
        assert seen.began_at <= revisions[place + 1].ended_at


def check_order(answers: list[Seen], records: dict[str, usage_pb.UsageRecord]) -> None:
    """Check that what a node told somebody is never older than what it had told before they asked."""
    ended = sorted(
        (each.ended_at, records[each.answer.request_id].config_revision) for each in answers
    )
    newest, place = 0, 0
    for each in sorted(answers, key=lambda each: each.began_at):
        while place < len(ended) and ended[place][0] < each.began_at:
            newest = max(newest, ended[place][1])
            place += 1
        assert records[each.answer.request_id].config_revision >= newest


def report(story: Story) -> None:
    took_ms = sorted((each.ended_at - each.began_at) * 1000 for each in story.revisions)
    print(  # noqa: T201 - shown by -s
        f"{len(story.revisions)} revisions, {len(story.answers)} requests; a revision was in force"
        f" everywhere after {took_ms[len(took_ms) // 2]:.0f} ms, {took_ms[-1]:.0f} ms at most"
    )
    # Otherwise nothing was shown: each revision served somebody, on the average.
    assert len(story.answers) >= len(story.revisions)
