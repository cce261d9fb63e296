import json
from dataclasses import replace

import httpx
import pytest
from msgspec.structs import replace as changed

from dataplane.domain.plan_cache import PlanCache
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
    # Waiting does not help.
    assert "resets_at" not in error["details"]


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


@pytest.mark.parametrize("dialect", ["openai", "anthropic"])
async def test_a_rate_says_how_much_how_often_and_how_much_at_once(
    data_plane: DataPlane, dialect: str
) -> None:
    data_plane.limited(key=(LimitEntry("requests", "rate", 1, every_ms=60_000, burst=2),))
    ask = data_plane.chat if dialect == "openai" else data_plane.message
    answers = [await ask(max_tokens=20) for _ in range(3)]

    assert [each.status_code for each in answers] == [200, 200, 429]
    error = check_refusal(answers[2], 429, "rate_limit_exceeded", dialect)
    details = error["details"]
    assert (details["layer"], details["window"]) == ("key_requests_rate", "1m")
    assert (details["limit"], details["burst"]) == (1, 2)
    # The next one passes when the first is a minute old.
    assert 1 <= int(answers[2].headers["retry-after"]) <= 62
    assert "x-should-retry" not in answers[2].headers


async def test_a_retry_after_a_rate_is_at_least_a_second(data_plane: DataPlane) -> None:
    data_plane.limited(user=(LimitEntry("requests", "rate", 4, every_ms=1_000, burst=1),))

    answer = await data_plane.chat()
    for _ in range(20):
        # A machine that is held for 250 ms between two calls lets both through.
        if answer.status_code == 200:
            answer = await data_plane.chat()

    assert answer.status_code == 429
    assert answer.headers["retry-after"] == "1"


@pytest.mark.parametrize("subject", ["endpoint", "model"])
@pytest.mark.parametrize("dialect", ["openai", "anthropic"])
async def test_a_limit_of_an_endpoint_or_a_model_refuses_without_figures(
    data_plane: DataPlane, subject: str, dialect: str
) -> None:
    data_plane.limited(**{subject: limit("requests", "day", 2)})
    answers = [await data_plane.chat(max_tokens=20) for _ in range(2)]
    assert [each.status_code for each in answers] == [200, 200]

    if subject == "endpoint" or dialect == "openai":
        refused = await data_plane.chat(max_tokens=20)
        error = check_refusal(refused, 429, "rate_limit_exceeded", "openai")
    else:
        refused = await data_plane.message(max_tokens=20)
        error = check_refusal(refused, 429, "rate_limit_exceeded", "anthropic")

    details = {key: value for key, value in error["details"].items() if key != "upgrade_url"}
    assert "T00:00:0" in details.pop("resets_at")
    assert details == {"layer": f"{subject}_requests_per_day", "window": "day"}
    assert not [name for name in refused.headers if "ratelimit" in name]
    # The other endpoint, the other model.
    passes = data_plane.message if subject == "endpoint" else data_plane.chat
    assert (await passes(model="mock-tokens-3", max_tokens=20)).status_code == 200


async def test_a_budget_of_a_model_is_the_services(data_plane: DataPlane) -> None:
    data_plane.limited(model=limit("spend", "day", 1_000))

    answer = await data_plane.chat(max_tokens=20)

    # It is larger than the whole budget, which says so without saying how large that is.
    error = check_refusal(answer, 400, "request_too_large_for_limit", "openai")
    assert error["details"]["layer"] == "model_spend_per_day"
    assert "limit" not in error["details"]
    assert "budget" not in error["details"]
    data_plane.limited(model=limit("spend", "day", 0))
    check_refusal(await data_plane.chat(max_tokens=20), 503, "budget_paused", "openai")


@pytest.mark.parametrize("unit", ["requests", "tokens"])
async def test_what_only_counts_never_refuses(data_plane: DataPlane, unit: str) -> None:
    data_plane.limited(
        user=(LimitEntry(unit, "day", 1, is_shadow=True),),
        key=(LimitEntry("spend", "month", 0, is_shadow=True),),
    )

    answers = [await data_plane.chat(max_tokens=20) for _ in range(3)]

    assert [each.status_code for each in answers] == [200, 200, 200]
    assert answers[2].headers[f"x-ratelimit-remaining-{unit}"] == "0"
    assert await data_plane.counted(f"user_{unit}_per_day") >= 3


@pytest.mark.parametrize(
    ("window", "capacity", "is_final"), [("day", 1, False), ("total", 1, True), ("day", 0, True)]
)
async def test_clients_are_told_where_waiting_does_not_help(
    data_plane: DataPlane, window: str, capacity: int, is_final: bool
) -> None:
    data_plane.limited(user=limit("requests", window, capacity))
    for _ in range(capacity):
        assert (await data_plane.chat(max_tokens=20)).status_code == 200

    refused = await data_plane.chat(max_tokens=20)

    check_refusal(refused, 429, "rate_limit_exceeded", "openai")
    assert refused.headers.get("x-should-retry") == ("false" if is_final else None)
    assert int(refused.headers["retry-after"]) >= 1


@pytest.mark.parametrize(("tier", "is_told"), [("free", True), ("pro", False), ("", False)])
async def test_only_the_free_tier_is_told_where_to_upgrade(
    data_plane: DataPlane, tier: str, is_told: bool
) -> None:
    data_plane.limited(user=limit("requests", "day", 1))
    snapshot = data_plane.configuration.get()
    [(digest, key)] = snapshot.keys_by_sha256.items()
    key = changed(key, principal=changed(key.principal, tier=tier))
    data_plane.use(replace(snapshot, keys_by_sha256={digest: key}, _plans=PlanCache()))

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
