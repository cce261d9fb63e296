"""The load on the limiter against a real server: what it counts is what was counted."""

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from dataplane import embedded_redis
from dataplane.limits.limiter import Limiter
from tests.load.admits import AdmitJob, outcome_of
from tests.load.layers import thirteen_layers


@pytest.fixture
def redis_url(tmp_path: Path) -> Iterator[str]:
    server = embedded_redis.start(tmp_path / "redis")
    yield server.url
    server.stop()


def job(redis_url: str) -> AdmitJob:
    return AdmitJob(redis_url=redis_url, seconds=0.2, warmup_s=0.05)


@pytest.mark.parametrize("load", [{"rate": 300.0}, {"callers": 1}, {"callers": 8}])
async def test_every_admitted_request_was_counted_and_settled(
    redis_url: str, load: dict[str, float]
) -> None:
    outcome = await outcome_of(msgspec.structs.replace(job(redis_url), **load))

    limiter = await Limiter.connect(redis_url)
    balances = await limiter.balances(thirteen_layers())
    await limiter.aclose(1.0)
    requests = next(each for each in balances if each.layer.name == "user_requests_per_day")
    assert 0 < outcome.admits <= requests.settled
    assert sum(each.held for each in balances) == 0
    assert 0 < outcome.p50_ms <= outcome.p99_ms
    assert outcome.redis.script_calls > 0


async def test_a_caller_alone_takes_two_calls_of_the_script_for_a_request(redis_url: str) -> None:
    outcome = await outcome_of(job(redis_url))

    # But for what is under way at either end of the window, and a look at the clock a second.
    assert abs(outcome.redis.script_calls - 2 * outcome.admits) <= 4
