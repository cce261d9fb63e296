"""Callers of an organization that is served while the counters cannot be read."""

from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path

import pytest
import pytest_asyncio
from msgspec.structs import replace as changed

from dataplane.admitting import Admitting
from dataplane.domain.plan_cache import PlanCache
from dataplane.domain.principals import LimitEntry, User
from dataplane.limits.emergency import Emergency
from dataplane.limits.limiter import Limiter
from tests.pipeline.conftest import DataPlane
from tests.pipeline.scripted import ScriptedProvider
from tests.pipeline.wire import check_refusal

REPLICAS = 2
# Of those this replica counts one by itself: two requests of any minute.
REQUESTS = (LimitEntry("requests", "minute", 2 * REPLICAS), LimitEntry("requests", "day", 1000))
TOKENS = (LimitEntry("tokens", "minute", 200 * REPLICAS), LimitEntry("tokens", "day", 100_000))
DEGRADED = "x-tollkeeper-limits"
Serve = Callable[[str, tuple[LimitEntry, ...]], None]


@pytest_asyncio.fixture
async def serve(data_plane: DataPlane, tmp_path: Path) -> AsyncIterator[Serve]:
    """Serve callers with these limits of a user while nobody answers where the counters are."""
    pipeline = data_plane.pipeline
    limiter = await Limiter.connect(f"unix://{tmp_path}/nobody.sock")
    emergency = Emergency(tmp_path, pipeline.clock_ms)
    pipeline.admitting = Admitting(limiter, pipeline.bills, pipeline.clock_ms, emergency)

    def use(provider_url: str, limits: tuple[LimitEntry, ...]) -> None:
        data_plane.calls(provider_url, user=limits)
        snapshot = data_plane.configuration.get()
        [(digest, key)] = snapshot.keys_by_sha256.items()
        user = key.principal.user
        opened: User = changed(user, organization=replace(user.organization, fails_open=True))
        key = changed(key, principal=changed(key.principal, user=opened))
        service = replace(snapshot.service, max_replicas=REPLICAS)
        keys = {digest: key}
        data_plane.use(replace(snapshot, keys_by_sha256=keys, service=service, _plans=PlanCache()))

    yield use
    emergency.close()
    await limiter.aclose(0.1)


@pytest.mark.parametrize("dialect", ["openai", "anthropic"])
async def test_callers_read_that_limits_are_degraded_and_of_those_that_are_counted(
    data_plane: DataPlane, serve: Serve, dialect: str
) -> None:
    serve(data_plane.mock.url, REQUESTS)
    ask = data_plane.chat if dialect == "openai" else data_plane.message

    served = [await ask(), await ask(stream=True)]
    refused = await ask()

    assert [each.status_code for each in served] == [200, 200]
    error = check_refusal(refused, 429, "rate_limit_exceeded", dialect)
    assert error["details"]["layer"] == "user_requests_per_minute"
    for answer, left in zip((*served, refused), (1, 0, 0), strict=True):
        assert answer.headers[DEGRADED] == "degraded"
        # Nobody knows how much is left of the day.
        assert "per_day" not in str(answer.headers)
        assert answer.headers["ratelimit-policy"] == '"user_requests_per_minute";q=4;w=60'
        assert answer.headers["ratelimit"].startswith(f'"user_requests_per_minute";r={left};')


async def test_callers_whom_the_provider_refuses_read_it_too(
    data_plane: DataPlane, serve: Serve, provider: ScriptedProvider
) -> None:
    serve(provider.url, REQUESTS)
    provider.answers(404, b"{}")

    answer = await data_plane.chat()

    check_refusal(answer, 404, "model_not_found", "openai")
    assert answer.headers[DEGRADED] == "degraded"
    assert answer.headers["x-ratelimit-remaining-requests"] == "1"
    assert "per_day" not in str(answer.headers)


@pytest.mark.parametrize("dialect", ["openai", "anthropic"])
async def test_a_call_that_only_the_counters_have_room_for_waits_for_them(
    data_plane: DataPlane, serve: Serve, dialect: str
) -> None:
    serve(data_plane.mock.url, TOKENS)
    ask = data_plane.chat if dialect == "openai" else data_plane.message

    of_share, of_limit = await ask(max_tokens=250), await ask(max_tokens=500)

    check_refusal(of_share, 503, "limits_unavailable", dialect)
    assert of_share.headers["retry-after"] == "5"
    assert not [name for name in of_share.headers if "ratelimit" in name or name == DEGRADED]
    error = check_refusal(of_limit, 400, "request_too_large_for_limit", dialect)
    assert error["details"]["layer"] == "user_tokens_per_minute"
    assert of_limit.headers[DEGRADED] == "degraded"
    assert data_plane.records.opens == []


async def test_an_answer_without_a_cap_of_its_own_is_cut_to_the_share(
    data_plane: DataPlane, serve: Serve
) -> None:
    serve(data_plane.mock.url, TOKENS)

    answer = await data_plane.chat()

    assert (answer.status_code, answer.headers[DEGRADED]) == (200, "degraded")
    [opened] = data_plane.records.opens
    assert 0 < opened.output_cap_tokens <= 200
