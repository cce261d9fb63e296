"""The load generator against the real mock: what it counts is true, and it does not count what is wrong."""

import os
from collections.abc import AsyncIterator

import msgspec
import pytest

from dataplane.mock.server import MockServer, serve
from tests.load.generator import Run
from tests.load.jobs import Job, Target, target


def call(model: str, *, stream: bool = False) -> dict[str, object]:
    return {"model": model, "messages": [{"role": "user", "content": "hello"}], "stream": stream}


def job(
    *targets: Target,
    connections: int = 4,
    takes_turns: bool = False,
    answer_deadline_s: float = 10.0,
) -> Job:
    return Job(
        targets=targets,
        connections=connections,
        takes_turns=takes_turns,
        seconds=0.15,
        warmup_s=0.05,
        answer_deadline_s=answer_deadline_s,
    )


def target_of(server: MockServer, body: dict[str, object], **right: int) -> Target:
    return msgspec.structs.replace(target(server.url, body), **right)


@pytest.fixture
async def provider() -> AsyncIterator[MockServer]:
    async with await serve() as server:
        yield server


async def whole(provider: MockServer) -> Target:
    """Learn from a failure how long a right answer is."""
    unknown = target_of(provider, call("mock-echo"), answer_bytes=1)
    [failure] = (await Run(job(unknown, connections=1)).outcome()).failures
    return msgspec.structs.replace(unknown, answer_bytes=int(failure.split()[3]))


async def test_every_request_that_the_provider_saw_is_counted(provider: MockServer) -> None:
    right = await whole(provider)
    before = provider.stats.requests

    outcome = await Run(job(right)).outcome()

    assert outcome.failures == []
    assert outcome.sent == [provider.stats.requests - before]
    assert 0 < outcome.answers < outcome.sent[0]
    assert outcome.latencies[0].answers == outcome.answers
    assert 0 < outcome.latencies[0].p50_ms <= outcome.latencies[0].p99_ms
    assert outcome.cpu_s["load"] > 0
    assert outcome.seconds >= 0.15


async def test_events_are_counted_when_they_arrive_and_no_stream_is_cut(
    provider: MockServer,
) -> None:
    stream = target_of(provider, call("mock-tokens-64-pace-10", stream=True), answer_events=67)

    outcome = await Run(job(stream)).outcome()

    assert outcome.failures == []
    # A stream takes 640 ms: none ends in the window, and about 15 events of each arrive in it.
    assert (outcome.answers, outcome.sent) == (0, [4])
    assert 0 < outcome.events < 4 * 67
    assert provider.stats.cancelled_streams == 0


async def test_targets_that_take_turns_get_the_same_number_of_requests(
    provider: MockServer,
) -> None:
    right = await whole(provider)

    outcome = await Run(job(right, right, connections=1, takes_turns=True)).outcome()

    assert outcome.failures == []
    assert len(outcome.latencies) == 2
    assert 0 <= outcome.sent[0] - outcome.sent[1] <= 1


@pytest.mark.parametrize(
    ("model", "stream", "seen"),
    [
        ("mock-status-503", False, "status 503: "),
        ("mock-echo", False, "an answer of "),
        ("mock-tokens-63", True, "a stream of 66 events instead of 67"),
        ("mock-tokens-64-cut-9", True, "a connection was closed before its answer"),
        ("mock-hang", True, "requests without an answer after 0.3 s"),
    ],
)
async def test_a_wrong_answer_fails_the_job_and_is_shown(
    provider: MockServer, model: str, stream: bool, seen: str
) -> None:
    right = {"answer_events": 67} if stream else {"answer_bytes": 1}

    wrong = target_of(provider, call(model, stream=stream), **right)
    outcome = await Run(job(wrong, answer_deadline_s=0.3)).outcome()

    assert any(seen in failure for failure in outcome.failures), outcome.failures


async def test_the_cpu_time_of_watched_processes_is_measured(provider: MockServer) -> None:
    right = await whole(provider)
    watching = msgspec.structs.replace(job(right), watched={"itself": os.getpid()})

    outcome = await Run(watching).outcome()

    assert 0 < outcome.cpu_s["itself"] <= outcome.seconds * 1.5
