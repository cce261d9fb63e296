import asyncio

import httpx

from dataplane.mock.server import MockServer
from tests.mock.dialects import Client, until

NOTHING = {
    "requests": 0,
    "open_streams": 0,
    "cancelled_streams": 0,
    "bytes": 0,
    "input_tokens": 0,
    "output_tokens": 0,
}


async def test_stats_begin_at_zero_and_count_only_calls(client: Client) -> None:
    await client.http.get("/health")
    await client.http.get("/v1/models")
    await client.http.get("/nowhere")

    assert await client.stats() == NOTHING


async def test_stats_count_the_bytes_and_tokens_served(client: Client) -> None:
    whole = await client.post("mock-tokens-6", "hello")
    await client.post("mock-tokens-4", "hi", stream=True)

    stats = await client.stats()

    assert stats["requests"] == 2
    assert (stats["input_tokens"], stats["output_tokens"]) == (3, 10)
    assert stats["bytes"] > len(whole.content)
    assert (stats["open_streams"], stats["cancelled_streams"]) == (0, 0)


async def test_a_reset_forgets_what_was_and_what_is_under_way(
    client: Client, provider: MockServer
) -> None:
    call = asyncio.create_task(client.post("mock-hang"))
    await until(lambda: provider.stats.open_streams == 1)

    response = await client.http.post("/mock/reset")

    assert response.json() == NOTHING
    call.cancel()
    await asyncio.wait([call])
    await client.post("mock-echo")
    stats = await client.stats()
    assert (stats["requests"], stats["open_streams"], stats["cancelled_streams"]) == (1, 0, 0)


async def test_health_says_ok(http: httpx.AsyncClient) -> None:
    response = await http.get("/health")

    assert response.status_code == 200
    assert response.json() == {"status": "ok"}


async def test_an_unknown_path_or_method_is_refused(http: httpx.AsyncClient) -> None:
    assert (await http.get("/nowhere")).status_code == 404
    assert (await http.get("/mock/reset")).status_code == 405
    assert (await http.post("/mock/stats")).status_code == 405


async def test_models_are_listed_and_each_of_them_exists(client: Client) -> None:
    listed = [entry["id"] for entry in (await client.http.get("/v1/models")).json()["data"]]

    assert "mock-echo" in listed
    for model in listed:
        if model not in ("mock-hang", "mock-status-429", "mock-cut-3"):
            assert (await client.post(model, limit=1)).status_code == 200
