import json

import pytest

from dataplane.domain.principals import LimitEntry
from tests.pipeline.conftest import DataPlane
from tests.pipeline.scripted import ScriptedProvider
from tests.pipeline.wire import check_refusal

# One output token costs 2,000 nano-USD, and so does the dearest kind of input token.
TOKEN = 2_000


def body(text: str = "x") -> bytes:
    return json.dumps({"model": "m", "messages": [{"role": "user", "content": text}]}).encode()


def input_upper(content: bytes) -> int:
    return len(content) + 16


async def test_the_output_cap_is_what_the_money_buys(
    data_plane: DataPlane, provider: ScriptedProvider
) -> None:
    capacity = (input_upper(body()) + 333) * TOKEN
    data_plane.calls(provider.url, user=(LimitEntry("spend", "month", capacity),))

    answer = await data_plane.client.post("/v1/chat/completions", content=body())

    assert answer.status_code == 200
    assert json.loads(provider.received[0].body)["max_tokens"] == 333
    [event] = data_plane.records.closes
    assert event.reserved_nanousd == capacity


async def test_the_output_cap_is_what_the_tokens_allow(
    data_plane: DataPlane, provider: ScriptedProvider
) -> None:
    limits = (
        LimitEntry("spend", "month", 10**9),
        LimitEntry("tokens", "day", input_upper(body()) + 77),
    )
    data_plane.calls(provider.url, user=limits)

    await data_plane.client.post("/v1/chat/completions", content=body())

    assert json.loads(provider.received[0].body)["max_tokens"] == 77


async def test_the_caps_of_several_choices_share_the_budget(
    data_plane: DataPlane, provider: ScriptedProvider
) -> None:
    content = body()[:-1] + b',"n":4}'
    data_plane.calls(provider.url, user=(LimitEntry("tokens", "day", input_upper(content) + 100),))

    await data_plane.client.post("/v1/chat/completions", content=content)

    assert json.loads(provider.received[0].body)["max_tokens"] == 25


@pytest.mark.parametrize(("room", "is_served"), [(16, True), (15, False)])
async def test_an_output_of_less_than_16_tokens_is_not_bought(
    data_plane: DataPlane, provider: ScriptedProvider, room: int, is_served: bool
) -> None:
    capacity = input_upper(body()) + room
    data_plane.calls(provider.url, user=(LimitEntry("tokens", "day", capacity),))

    answer = await data_plane.client.post("/v1/chat/completions", content=body())

    if is_served:
        assert json.loads(provider.received[0].body)["max_tokens"] == 16
    else:
        check_refusal(answer, 400, "request_too_large_for_limit", "openai")
        assert provider.received == []


@pytest.mark.parametrize(
    ("unit", "code"), [("tokens", "rate_limit_exceeded"), ("spend", "insufficient_quota")]
)
async def test_a_call_that_fits_tomorrow_is_not_called_too_large(
    data_plane: DataPlane, provider: ScriptedProvider, unit: str, code: str
) -> None:
    # The gateway's own cap of 4,096 never fits such a limit; that is not the caller's fault.
    capacity = 200 if unit == "tokens" else 200 * TOKEN
    data_plane.calls(provider.url, user=(LimitEntry(unit, "day", capacity),))
    usage = b'{"choices":[],"usage":{"prompt_tokens":100,"completion_tokens":80}}'
    provider.answers(200, usage)
    first = await data_plane.client.post("/v1/chat/completions", content=body())
    assert first.status_code == 200, first.text
    while (
        answer := await data_plane.client.post("/v1/chat/completions", content=body())
    ).status_code == 200:
        assert len(provider.received) < 5

    check_refusal(answer, 429, code, "openai")


async def test_a_callers_own_cap_is_never_changed(
    data_plane: DataPlane, provider: ScriptedProvider
) -> None:
    content = body()[:-1] + b',"max_completion_tokens":500}'
    data_plane.calls(provider.url, user=(LimitEntry("tokens", "day", 300),))

    answer = await data_plane.client.post("/v1/chat/completions", content=content)

    check_refusal(answer, 400, "request_too_large_for_limit", "openai")
    assert provider.received == []
