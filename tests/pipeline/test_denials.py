import json
from dataclasses import replace

import httpx
import pytest

from dataplane.domain.principals import LimitEntry
from tests.pipeline.conftest import DataPlane
from tests.pipeline.wire import check_refusal

SUBJECTS = ("user", "key", "organization")
BODY = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 20}


def limit(unit: str, window: str, capacity: int) -> tuple[LimitEntry, ...]:
    return (LimitEntry(unit, window, capacity),)


async def second_of_two(data_plane: DataPlane, dialect: str) -> httpx.Response:
    ask = data_plane.chat if dialect == "openai" else data_plane.message
    first = await ask(max_tokens=20)
    assert first.status_code == 200, first.text
    return await ask(max_tokens=20)


@pytest.mark.parametrize("dialect", ["openai", "anthropic"])
@pytest.mark.parametrize("subject", SUBJECTS)
@pytest.mark.parametrize(("window", "capacity"), [("minute", 1), ("day", 1)])
async def test_a_limit_on_requests_says_which_and_until_when(
    data_plane: DataPlane, dialect: str, subject: str, window: str, capacity: int
) -> None:
    data_plane.limited(**{subject: limit("requests", window, capacity)})

    answer = await second_of_two(data_plane, dialect)

    error = check_refusal(answer, 429, "rate_limit_exceeded", dialect)
    details = error["details"]
    assert details["layer"] == f"{subject}_requests_per_{window}"
    assert (details["window"], details["limit"]) == (window, capacity)
    assert details["resets_at"].endswith("Z")
    assert error["type"] == "rate_limit_error"


@pytest.mark.parametrize("dialect", ["openai", "anthropic"])
async def test_a_budget_is_over_in_the_words_of_each_dialect(
    data_plane: DataPlane, dialect: str
) -> None:
    # Each of these calls reserves some 308,000 nano-USD; the first one costs 102,000.
    data_plane.limited(user=limit("spend", "month", 400_000))
    assert (await data_plane.message(model="mock-tokens-50", max_tokens=50)).status_code == 200

    ask = data_plane.chat if dialect == "openai" else data_plane.message
    answer = await ask(text="x" * 40, max_tokens=20)

    status, kind = (429, "insufficient_quota") if dialect == "openai" else (402, "billing_error")
    assert answer.status_code == status
    assert answer.headers["x-tollkeeper-error"] == "insufficient_quota"
    assert answer.headers["x-should-retry"] == "false"
    assert int(answer.headers["retry-after"]) > 0
    error = answer.json()["error"]
    assert error["type"] == kind
    assert error["details"]["budget"] == "0.0004"
    assert error["details"]["spent"] == "0.000102"
    assert (error["details"]["held"], error["details"]["layer"]) == ("0", "user_spend_per_month")


@pytest.mark.parametrize("dialect", ["openai", "anthropic"])
async def test_the_services_own_budget_pauses_without_figures(
    data_plane: DataPlane, dialect: str
) -> None:
    data_plane.limited(service=limit("spend", "day", 400_000))
    assert (await data_plane.message(model="mock-tokens-50", max_tokens=50)).status_code == 200
    ask = data_plane.chat if dialect == "openai" else data_plane.message

    answer = await ask(text="x" * 40, max_tokens=20)

    error = check_refusal(answer, 503, "budget_paused", dialect)
    assert answer.headers["x-should-retry"] == "false"
    assert set(error["details"]) <= {"layer", "window", "resets_at", "upgrade_url"}
    assert "0.0004" not in answer.text
    assert "400000" not in answer.text
    assert not [name for name in answer.headers if "ratelimit" in name]


@pytest.mark.parametrize("dialect", ["openai", "anthropic"])
async def test_a_call_that_is_larger_than_a_limit_alone_is_a_bad_request(
    data_plane: DataPlane, dialect: str
) -> None:
    data_plane.limited(user=limit("tokens", "day", 100))
    ask = data_plane.chat if dialect == "openai" else data_plane.message

    answer = await ask(max_tokens=200)

    error = check_refusal(answer, 400, "request_too_large_for_limit", dialect)
    assert answer.headers["x-should-retry"] == "false"
    assert error["details"]["limit"] == 100


@pytest.mark.parametrize("dialect", ["openai", "anthropic"])
async def test_too_many_calls_at_once_are_told_so(data_plane: DataPlane, dialect: str) -> None:
    data_plane.limited(key=limit("parallel", "none", 1))
    ask = data_plane.chat if dialect == "openai" else data_plane.message
    async with data_plane.client.stream(
        "POST", "/v1/messages", json={"model": "mock-tokens-200-pace-20", "stream": True, **BODY}
    ) as first:
        assert first.status_code == 200

        answer = await ask()

        error = check_refusal(answer, 429, "too_many_parallel_requests", dialect)
        assert answer.headers["retry-after"] == "1"
        assert error["details"]["layer"] == "key_parallel"
    await data_plane.until(lambda: len(data_plane.records.closes) == 1)
    assert (await ask()).status_code == 200


@pytest.mark.parametrize("subject", [*SUBJECTS, "service"])
async def test_a_limit_of_nothing_refuses_everything(data_plane: DataPlane, subject: str) -> None:
    data_plane.limited(**{subject: limit("requests", "day", 0)})

    answer = await data_plane.chat()

    check_refusal(answer, 429, "rate_limit_exceeded", "openai")
    assert data_plane.records.opens == []


@pytest.mark.parametrize(("tier", "is_told"), [("free", True), ("pro", False), ("", False)])
async def test_only_the_free_tier_is_told_where_to_upgrade(
    data_plane: DataPlane, tier: str, is_told: bool
) -> None:
    data_plane.limited(user=limit("requests", "day", 1))
    snapshot = data_plane.configuration.get()
    [(digest, key)] = snapshot.keys_by_sha256.items()
    key = replace(key, principal=replace(key.principal, tier=tier))
    data_plane.use(replace(snapshot, keys_by_sha256={digest: key}, _plans={}))

    answer = await second_of_two(data_plane, "openai")

    details = check_refusal(answer, 429, "rate_limit_exceeded", "openai")["details"]
    assert ("upgrade_url" in details) is is_told


async def test_refusals_never_show_ids_or_layers_of_others(data_plane: DataPlane) -> None:
    data_plane.limited(
        service=limit("requests", "minute", 7654321),
        user=limit("requests", "minute", 1),
        organization=limit("requests", "day", 50),
    )

    answer = await second_of_two(data_plane, "openai")

    everything = json.dumps(dict(answer.headers)) + answer.text
    assert "7654321" not in everything
    assert "abcdefghijkl" not in everything
