import re
from collections.abc import Mapping
from datetime import datetime
from typing import Any

import pytest

from dataplane.domain.calls import Dialect
from dataplane.domain.limiting import (
    NEVER_MS,
    Layer,
    Standing,
    SubjectKind,
    Unit,
    Window,
    plan_of,
)
from dataplane.domain.principals import LimitEntry
from dataplane.http.ratelimit_headers import duration, limit_headers
from tests.pipeline.conftest import DataPlane
from tests.pipeline.pieces import ERROR, START
from tests.pipeline.scripted import ScriptedProvider

LIMITS = (
    LimitEntry("requests", "minute", 10),
    LimitEntry("requests", "day", 1000),
    LimitEntry("tokens", "day", 100_000),
    LimitEntry("spend", "month", 10**12),
    LimitEntry("parallel", "none", 5),
)


async def test_openai_callers_see_what_is_left_going_down(data_plane: DataPlane) -> None:
    data_plane.limited(user=LIMITS, service=(LimitEntry("requests", "day", 424242),))

    first, second = await data_plane.chat(max_tokens=20), await data_plane.chat(max_tokens=20)

    assert first.headers["x-ratelimit-limit-requests"] == "10"
    assert first.headers["x-ratelimit-remaining-requests"] == "9"
    assert second.headers["x-ratelimit-remaining-requests"] == "8"
    assert first.headers["x-ratelimit-limit-tokens"] == "100000"
    left = [int(each.headers["x-ratelimit-remaining-tokens"]) for each in (first, second)]
    assert 0 < left[1] < left[0] < 100_000
    assert re.fullmatch(r"(\d+h)?(\d+m)?(\d+s|\d+ms)", first.headers["x-ratelimit-reset-requests"])
    assert '"user_requests_per_day";q=1000;w=86400' in first.headers["ratelimit-policy"]
    assert re.search(r'"user_requests_per_minute";r=9;t=\d+', first.headers["ratelimit"])
    assert "424242" not in str(first.headers)
    assert not [name for name in first.headers if name.startswith("anthropic-")]


async def test_anthropic_callers_see_it_in_their_own_headers(data_plane: DataPlane) -> None:
    data_plane.limited(user=LIMITS)

    whole, streamed = await data_plane.message(), await data_plane.message(stream=True)

    assert whole.headers["anthropic-ratelimit-requests-limit"] == "10"
    assert whole.headers["anthropic-ratelimit-requests-remaining"] == "9"
    assert streamed.headers["anthropic-ratelimit-requests-remaining"] == "8"
    reset = datetime.fromisoformat(whole.headers["anthropic-ratelimit-tokens-reset"])
    assert reset.utcoffset() is not None
    assert not [name for name in whole.headers if name.startswith("x-ratelimit")]


async def test_a_denied_caller_sees_that_nothing_is_left(data_plane: DataPlane) -> None:
    data_plane.limited(user=(LimitEntry("requests", "minute", 1),))
    await data_plane.chat()

    denied = await data_plane.chat()

    assert denied.status_code == 429
    assert denied.headers["x-ratelimit-remaining-requests"] == "0"
    assert (
        1 <= int(denied.headers["retry-after"]) <= 67
    )  # a minute, a slot of five seconds, and the jitter


async def test_a_caller_without_limits_gets_no_headers_of_limits(data_plane: DataPlane) -> None:
    answer = await data_plane.chat()

    assert not [name for name in answer.headers if "ratelimit" in name]


async def test_a_rate_is_shown_beside_the_layers_per_minute(data_plane: DataPlane) -> None:
    rate = LimitEntry("requests", "rate", 10, every_ms=2_500, burst=20)
    data_plane.limited(key=(rate,), user=LIMITS)

    answer = await data_plane.chat()

    assert answer.headers["x-ratelimit-limit-requests"] == "10"
    assert answer.headers["x-ratelimit-remaining-requests"] == "9"
    assert answer.headers["x-ratelimit-reset-requests"].startswith("1m")
    # 20 at once, and those come back in 5 seconds.
    assert '"key_requests_rate";q=20;w=5' in answer.headers["ratelimit-policy"]
    assert '"key_requests_rate";r=19;t=1' in answer.headers["ratelimit"]


@pytest.mark.parametrize("dialect", ["openai", "anthropic"])
async def test_what_is_left_of_a_rate_is_never_more_than_its_limit(
    data_plane: DataPlane, dialect: str
) -> None:
    data_plane.limited(key=(LimitEntry("requests", "rate", 10, every_ms=10_000, burst=30),))

    answer = await (data_plane.chat() if dialect == "openai" else data_plane.message())

    names = {
        "openai": ("x-ratelimit-limit-requests", "x-ratelimit-remaining-requests"),
        "anthropic": (
            "anthropic-ratelimit-requests-limit",
            "anthropic-ratelimit-requests-remaining",
        ),
    }
    assert [answer.headers[name] for name in names[dialect]] == ["30", "29"]
    assert answer.headers["ratelimit-policy"] == '"key_requests_rate";q=30;w=30'
    assert answer.headers["ratelimit"].startswith('"key_requests_rate";r=29;')


@pytest.mark.parametrize(("status", "seen"), [(400, 400), (404, 404), (413, 413), (429, 429)])
@pytest.mark.parametrize("dialect", ["openai", "anthropic"])
async def test_callers_whom_the_provider_refuses_see_what_is_left(
    data_plane: DataPlane, provider: ScriptedProvider, dialect: str, status: int, seen: int
) -> None:
    data_plane.calls(provider.url, user=LIMITS)
    ask = data_plane.chat if dialect == "openai" else data_plane.message
    name = {
        "openai": "x-ratelimit-remaining-requests",
        "anthropic": "anthropic-ratelimit-requests-remaining",
    }[dialect]
    # As the provider's own refusal, which passes as it is, and one in our words.
    for left, body in ((9, b'{"error":{"message":"no"}}'), (8, b"no")):
        provider.answers(status, body, "x-ratelimit-remaining-requests: 7")

        refused = await ask(max_tokens=20)

        assert (refused.status_code, refused.headers[name]) == (seen, str(left))
        assert f'"user_requests_per_minute";r={left};' in refused.headers["ratelimit"]
        assert '"user_tokens_per_day";q=100000;w=86400' in refused.headers["ratelimit-policy"]
        assert "x-tollkeeper-limits" not in refused.headers


async def test_callers_of_a_provider_that_fails_see_what_is_left(
    data_plane: DataPlane, provider: ScriptedProvider
) -> None:
    data_plane.calls(provider.url, user=LIMITS)
    provider.answers(200, b"not an answer")
    of_body = await data_plane.chat()
    provider.streams(START["openai"], ERROR["openai"])
    of_stream = await data_plane.chat(stream=True)
    data_plane.calls("http://127.0.0.1:1", user=LIMITS)
    of_nobody = await data_plane.chat()

    seen = [
        (each.status_code, each.headers["x-ratelimit-remaining-requests"])
        for each in (of_body, of_stream, of_nobody)
    ]
    assert seen == [(502, "9"), (502, "8"), (502, "7")]


async def test_a_limit_of_nothing_is_shown_without_a_reset(data_plane: DataPlane) -> None:
    closed = (LimitEntry("requests", "day", 0), LimitEntry("requests", "minute", 10))
    data_plane.limited(user=closed)

    of_openai, of_anthropic = await data_plane.chat(), await data_plane.message()

    # Nobody asked how much is left of the other one.
    assert limits_in(of_openai.headers) == {
        "x-ratelimit-limit-requests": "0",
        "x-ratelimit-remaining-requests": "0",
        "ratelimit-policy": '"user_requests_per_day";q=0;w=86400',
        "ratelimit": '"user_requests_per_day";r=0',
    }
    assert limits_in(of_anthropic.headers) == {
        "anthropic-ratelimit-requests-limit": "0",
        "anthropic-ratelimit-requests-remaining": "0",
        "ratelimit-policy": '"user_requests_per_day";q=0;w=86400',
        "ratelimit": '"user_requests_per_day";r=0',
    }


def limits_in(headers: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in headers.items() if "ratelimit" in name}


async def test_layers_of_endpoints_and_models_are_counted_and_not_shown(
    data_plane: DataPlane,
) -> None:
    data_plane.limited(
        endpoint=(LimitEntry("requests", "minute", 4242),),
        model=(LimitEntry("tokens", "day", 424_242),),
    )

    answer = await data_plane.chat()

    assert not [name for name in answer.headers if "ratelimit" in name]
    assert "4242" not in str(answer.headers)
    assert await data_plane.counted("endpoint_requests_per_minute") == 1
    assert await data_plane.counted("model_tokens_per_day") > 0


def shown(*standings: Standing, dialect: Dialect = Dialect.OPENAI) -> dict[str, str]:
    """Return the headers for these, whether what never changes was worked out before or not."""
    plan = plan_of(each.layer for each in standings)
    ordered = sorted(standings, key=lambda each: plan.layers.index(each.layer))
    headers = limit_headers(ordered, dialect, 0)
    for _ in range(2):
        assert limit_headers(ordered, dialect, 0, plan) == headers
    return dict(headers)


def standing(
    window: Window, remaining: int, kind: SubjectKind = SubjectKind.USER, **changes: Any
) -> Standing:
    values = {"subject_id": "u1", "unit": Unit.REQUESTS, "capacity": 100, **changes}
    return Standing(Layer(kind, window=window, **values), remaining, 30_000, "")


def rate(remaining: int, every_ms: int = 1_000, **changes: Any) -> Standing:
    return standing(Window.RATE, remaining, every_ms=every_ms, **changes)


def test_the_tightest_is_the_one_per_minute_with_the_least_left() -> None:
    minute, day = standing(Window.MINUTE, 50), standing(Window.DAY, 3)
    of_key = standing(Window.MINUTE, 40, SubjectKind.KEY)
    total = standing(Window.TOTAL, 7)

    def remaining(*standings: Standing) -> str:
        return shown(*standings)["x-ratelimit-remaining-requests"]

    assert remaining(minute, of_key, day, rate(1)) == "40"
    # Without one per minute what is left of longer times is shown, and a rate at last.
    assert remaining(day, total, rate(1)) == "3"
    assert remaining(rate(1)) == "1"


def test_what_only_counts_is_shown_and_never_as_the_tightest() -> None:
    shadow = standing(Window.MINUTE, 0, is_shadow=True)

    beside = shown(shadow, standing(Window.DAY, 3))
    alone = shown(shadow)

    assert beside["x-ratelimit-remaining-requests"] == "3"
    assert '"user_requests_per_minute";r=0;t=30' in beside["ratelimit"]
    assert alone["x-ratelimit-remaining-requests"] == "0"


def test_the_draft_names_the_layers_of_user_key_and_device_and_a_devices_address() -> None:
    standings = [
        standing(Window.DAY, 9, kind, has_public_figures=kind in PUBLIC) for kind in SubjectKind
    ]

    headers = shown(*standings)

    policies = headers["ratelimit-policy"].split(", ")
    assert policies == [
        f'"{kind}_requests_per_day";q=100;w=86400' for kind in ("user", "key", "device", "ip")
    ]
    assert len(headers["ratelimit"].split(", ")) == 4


PUBLIC = {
    SubjectKind.ORGANIZATION,
    SubjectKind.USER,
    SubjectKind.KEY,
    SubjectKind.DEVICE,
    SubjectKind.IP,
}


@pytest.mark.parametrize(
    ("every_ms", "burst", "most", "seconds"),
    [
        (1, 20, 20, 1),
        (1_000, 0, 10, 1),
        (1_000, 20, 20, 2),
        (1_001, 0, 10, 2),
        (60_000, 0, 10, 60),
        (60_000, 30, 30, 180),
        (60_000, 1, 1, 6),
    ],
)
def test_the_window_of_a_rate_is_in_whole_seconds_and_not_shorter(
    every_ms: int, burst: int, most: int, seconds: int
) -> None:
    headers = shown(rate(1, every_ms, capacity=10, burst=burst))

    assert headers["ratelimit-policy"] == f'"user_requests_rate";q={most};w={seconds}'
    assert headers["ratelimit"] == '"user_requests_rate";r=1;t=30'


def test_a_rate_of_nothing_has_no_burst() -> None:
    headers = shown(rate(0, 1_500, capacity=0, burst=20))

    assert headers["x-ratelimit-limit-requests"] == "0"
    assert headers["ratelimit-policy"] == '"user_requests_rate";q=0;w=2'


def test_no_reset_is_told_where_time_gives_nothing_back() -> None:
    def names(*standings: Standing, dialect: Dialect) -> set[str]:
        return {name for name in shown(*standings, dialect=dialect) if "reset" in name}

    total = standing(Window.TOTAL, 3)._replace(reset_ms=NEVER_MS)
    day = standing(Window.DAY, 0, SubjectKind.DEVICE, capacity=0)._replace(reset_ms=NEVER_MS)
    whole = standing(Window.DAY, 3, SubjectKind.DEVICE)

    for dialect in Dialect:
        assert names(total, dialect=dialect) == set()
        assert names(day, dialect=dialect) == set()
        assert len(names(whole, dialect=dialect)) == 2
    assert shown(day)["ratelimit"] == '"device_requests_per_day";r=0'


def test_anthropics_headers_follow_the_same_rules() -> None:
    headers = shown(standing(Window.MINUTE, 5), rate(1), dialect=Dialect.ANTHROPIC)

    assert headers["anthropic-ratelimit-requests-remaining"] == "5"
    assert headers["anthropic-ratelimit-requests-reset"] == "1970-01-01T00:00:30Z"


@pytest.mark.parametrize(
    ("milliseconds", "text"),
    [
        (-5, "0ms"),
        (0, "0ms"),
        (999, "999ms"),
        (1000, "1s"),
        (59_001, "1m0s"),
        (90_000, "1m30s"),
        (7_205_000, "2h0m5s"),
    ],
)
def test_durations_are_written_as_openai_does(milliseconds: int, text: str) -> None:
    assert duration(milliseconds) == text
