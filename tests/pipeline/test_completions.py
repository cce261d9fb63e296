import json

from tests.pipeline.conftest import DataPlane


async def test_an_answer_passes_through_and_its_usage_is_billed(data_plane: DataPlane) -> None:
    response = await data_plane.chat(text="four")

    assert response.status_code == 200
    assert response.json()["choices"][0]["message"]["content"] == "four"
    [event] = data_plane.records.closes
    assert (event.state, event.http_status, event.usage.source) == ("settled", 200, "reported")
    assert (event.usage.input_total_tokens, event.usage.output_tokens) == (1, 1)
    assert event.charged_nanousd == 1_000 + 2_000
    assert response.headers["x-tollkeeper-cost-usd"] == "0.000003"
    assert response.headers["x-request-id"] == event.request_id


async def test_a_stream_hides_the_usage_that_the_caller_did_not_ask_for(
    data_plane: DataPlane,
) -> None:
    response = await data_plane.chat(text="four words of text", stream=True)

    assert response.status_code == 200
    assert "usage" not in response.text
    assert response.text.endswith("data: [DONE]\n\n")
    chunks = [
        json.loads(line[6:]) for line in response.text.splitlines() if line.startswith("data: {")
    ]
    text = "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks)
    assert text == "four words of text"
    [event] = data_plane.records.closes
    assert (event.usage.input_total_tokens, event.usage.output_tokens) == (5, 5)
    assert (event.stream, event.usage.source) == (True, "reported")


async def test_a_caller_who_asks_for_usage_gets_the_providers_own_bytes(
    data_plane: DataPlane,
) -> None:
    response = await data_plane.chat(stream=True, stream_options={"include_usage": True})

    assert response.text.count('"usage":null') > 2
    assert '"total_tokens":' in response.text


async def test_an_anthropic_message_passes_both_ways(data_plane: DataPlane) -> None:
    whole = await data_plane.message(text="four")
    streamed = await data_plane.message(text="four", stream=True)

    assert whole.json()["content"][0]["text"] == "four"
    assert "event: message_stop" in streamed.text
    first, second = data_plane.records.closes
    assert first.usage.total_tokens == second.usage.total_tokens == 2
    assert (first.dialect, second.endpoint) == ("anthropic", "messages")
