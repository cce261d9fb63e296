import asyncio
import json
import time

import httpx
import pytest

from dataplane.mock.server import MockServer
from tests.mock.dialects import Client, until

both = pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])

ERROR_TYPES = {
    400: (("invalid_request_error", None), ("invalid_request_error", None)),
    401: (("invalid_request_error", "invalid_api_key"), ("authentication_error", None)),
    403: (("invalid_request_error", "forbidden"), ("permission_error", None)),
    404: (("invalid_request_error", "model_not_found"), ("not_found_error", None)),
    418: (("invalid_request_error", None), ("invalid_request_error", None)),
    429: (("requests", "rate_limit_exceeded"), ("rate_limit_error", None)),
    500: (("server_error", None), ("api_error", None)),
    503: (("server_error", None), ("api_error", None)),
    529: (("server_error", None), ("overloaded_error", None)),
}


async def collect(response: httpx.Response, received: bytearray) -> None:
    async for data in response.aiter_raw():
        received += data


@both
@pytest.mark.parametrize("status", ERROR_TYPES)
async def test_a_status_is_answered_in_the_shape_of_the_dialect(
    client: Client, stream: bool, status: int
) -> None:
    response = await client.post(f"mock-status-{status}", stream=stream)

    assert response.status_code == status
    assert client.error_of(response) == ERROR_TYPES[status][client.dialect == "anthropic"]
    assert response.headers.get("retry-after") == ("1" if status == 429 else None)
    stats = await client.stats()
    assert (stats["requests"], stats["input_tokens"], stats["output_tokens"]) == (1, 0, 0)


async def test_an_unknown_part_is_an_unknown_model(client: Client) -> None:
    response = await client.post("mock-tokens-4-sing")

    assert response.status_code == 404
    assert client.error_of(response) == ERROR_TYPES[404][client.dialect == "anthropic"]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"\xff",
        b'{"model":"x"}',
        b'{"model":"x","max_tokens":1,"messages":[]}',
        b'{"model":5,"max_tokens":1,"messages":[{"role":"user","content":"a"}]}',
        b'{"model":"x","max_tokens":0,"messages":[{"role":"user","content":"a"}]}',
        b'{"model":"x","max_tokens":1,"messages":[{"role":"user","content":7}]}',
        b'{"model":"x","max_tokens":1,"messages":[{"role":"user","content":"\xff"}]}',
        rb'{"model":"x","max_tokens":1,"messages":[{"role":"user","content":"\ud800x"}]}',
        rb'{"model":"x","max_tokens":1,"messages":[{"role":"user","content":"\udc00"}]}',
    ],
)
async def test_a_malformed_call_is_refused_in_the_shape_of_the_dialect(
    client: Client, body: bytes
) -> None:
    response = await client.http.post(client.path, content=body)

    assert response.status_code == 400
    assert client.error_of(response)[0] == "invalid_request_error"
    assert (await client.stats())["requests"] == 1


@pytest.mark.parametrize("extra", [{"n": 2}, {"stream_options": {"include_usage": True}}])
async def test_an_openai_call_that_cannot_be_answered_truly_is_refused(
    client: Client, extra: dict[str, object]
) -> None:
    body = {"model": "mock-echo", "messages": [{"role": "user", "content": "a"}]} | extra

    assert (await client.http.post("/v1/chat/completions", json=body)).status_code == 400


async def test_a_call_with_another_method_is_refused(client: Client) -> None:
    response = await client.http.get(client.path)

    assert response.status_code == 405
    assert client.error_of(response)[0] == "invalid_request_error"


@both
async def test_a_slow_answer_waits_before_its_first_token(client: Client, stream: bool) -> None:
    started_at = time.monotonic()

    outcome = await client.ask("mock-slow-80-tokens-50", stream=stream)

    assert time.monotonic() - started_at >= 0.08
    assert outcome.usage == (2, 50)


@both
async def test_a_paced_answer_takes_its_time_for_every_token(client: Client, stream: bool) -> None:
    started_at = time.monotonic()

    outcome = await client.ask("mock-tokens-8-pace-10", stream=stream)

    assert time.monotonic() - started_at >= 0.08
    assert outcome.usage == (2, 8)


async def test_the_tokens_of_a_paced_stream_arrive_one_by_one(client: Client) -> None:
    arrived_at = []

    async with client.stream("mock-tokens-8-pace-15") as response:
        async for line in response.aiter_lines():
            if "delta" in line and ('"content":"' in line or '"text":"' in line):
                arrived_at.append(time.monotonic())

    assert arrived_at[-1] - arrived_at[-8] >= 0.5 * 7 * 0.015


@both
async def test_a_call_that_hangs_is_open_until_the_client_leaves(
    client: Client, provider: MockServer, stream: bool
) -> None:
    call = asyncio.create_task(client.post("mock-hang", stream=stream))
    await until(lambda: provider.stats.open_streams == 1)
    assert provider.stats.bytes == 0

    call.cancel()

    await until(lambda: provider.stats.cancelled_streams == 1)
    assert provider.stats.open_streams == 0
    assert (provider.stats.input_tokens, provider.stats.output_tokens) == (2, 0)


@pytest.mark.parametrize("pace", ["", "-pace-1"])
@pytest.mark.parametrize("events", [0, 1, 5, 10])
async def test_a_cut_stream_ends_without_its_end(
    client: Client, provider: MockServer, events: int, pace: str
) -> None:
    received = bytearray()

    async with client.stream(f"mock-tokens-64-cut-{events}{pace}") as response:
        with pytest.raises(httpx.RemoteProtocolError):
            await collect(response, received)

    outcome = client.outcome_of_stream(received.decode())
    assert len(outcome.events) == events
    assert received.endswith(b"\n\n") or not events
    content_events = [name for name in outcome.events if name.startswith("content")]
    tokens = len([name for name in content_events if not name.endswith("_start")])
    assert provider.stats.output_tokens == tokens
    assert (provider.stats.open_streams, provider.stats.cancelled_streams) == (0, 0)


async def test_a_cut_json_answer_ends_in_its_middle(client: Client, provider: MockServer) -> None:
    with pytest.raises(httpx.RemoteProtocolError):
        await client.post("mock-tokens-64-cut-1")

    assert (provider.stats.input_tokens, provider.stats.output_tokens) == (2, 0)


async def test_a_client_that_leaves_mid_stream_is_counted_within_a_second(
    client: Client, provider: MockServer
) -> None:
    received = ""
    async with client.stream("mock-tokens-1000-pace-5") as response:
        async for text in response.aiter_text():
            received += text
            if received.count("delta") > 20:
                break
        assert provider.stats.open_streams == 1

    await until(lambda: provider.stats.cancelled_streams == 1)

    assert provider.stats.open_streams == 0
    served = provider.stats.output_tokens
    assert 5 < served < 500
    # While another call takes its time, nothing more is counted for the one that left.
    await client.ask("mock-tokens-8-pace-5", stream=True)
    assert provider.stats.output_tokens == served + 8


async def stalled_stream(
    provider: MockServer,
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Ask for more than fits between client and provider, and wait until all of that is full."""
    message = {"role": "user", "content": "a"}
    body = json.dumps({"model": "mock-tokens-100000", "stream": True, "messages": [message]})
    reader, writer = await asyncio.open_connection("127.0.0.1", provider.port)
    head = f"POST /v1/chat/completions HTTP/1.1\r\ncontent-length: {len(body)}\r\n\r\n"
    writer.write((head + body).encode())
    await until(lambda: provider.stats.output_tokens > 0)
    served_tokens = -1
    while provider.stats.output_tokens != served_tokens:
        served_tokens = provider.stats.output_tokens
        await asyncio.sleep(0.01)
    assert served_tokens < 100_000
    assert provider.stats.open_streams == 1
    return reader, writer


async def test_a_reader_that_stalls_holds_the_stream_back_and_then_gets_all_of_it(
    provider: MockServer,
) -> None:
    reader, writer = await stalled_stream(provider)

    end = b""
    async with asyncio.timeout(10):
        while not end.endswith(b"\r\n0\r\n\r\n"):
            end = end[-16:] + await reader.read(2**20)

    await until(lambda: provider.stats.open_streams == 0)
    assert provider.stats.output_tokens == 100_000
    assert provider.stats.cancelled_streams == 0
    writer.close()
    await writer.wait_closed()


@pytest.mark.parametrize("leave", ["close", "write_eof"])
async def test_a_reader_that_stalls_and_leaves_is_counted_within_a_second(
    provider: MockServer, leave: str
) -> None:
    _, writer = await stalled_stream(provider)

    getattr(writer, leave)()

    await until(lambda: provider.stats.cancelled_streams == 1)
    assert provider.stats.open_streams == 0
    writer.transport.abort()
