import re
from datetime import datetime

import pytest

from dataplane.domain.principals import LimitEntry
from dataplane.http.ratelimit_headers import duration
from tests.pipeline.conftest import DataPlane

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
