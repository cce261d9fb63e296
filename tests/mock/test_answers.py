import pytest

from dataplane.mock.server import MockServer
from tests.mock.dialects import Client

both = pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
MULTI_BYTE = "aé€語😀 über 日本語 🎉"


@both
async def test_echo_answers_with_the_last_user_message(client: Client, stream: bool) -> None:
    outcome = await client.ask("mock-echo", "hello there", stream=stream)

    assert outcome.text == "hello there"
    assert outcome.stop in ("stop", "end_turn")
    assert outcome.usage == (3, 3)


@both
@pytest.mark.parametrize("model", ["unpriced-mock", "gpt-x", "claude-z"])
async def test_any_other_name_echoes(client: Client, stream: bool, model: str) -> None:
    assert (await client.ask(model, "hi", stream=stream)).text == "hi"


@both
async def test_usage_is_true_for_characters_of_many_bytes(client: Client, stream: bool) -> None:
    tokens = -(-len(MULTI_BYTE.encode()) // 4)

    outcome = await client.ask("mock-echo", MULTI_BYTE, stream=stream)

    assert outcome.text == MULTI_BYTE
    assert outcome.usage == (tokens, tokens)
    stats = await client.stats()
    assert (stats["input_tokens"], stats["output_tokens"]) == (tokens, tokens)


@both
@pytest.mark.parametrize("tokens", [0, 1, 64, 5000])
async def test_an_answer_has_the_tokens_that_were_asked_for(
    client: Client, stream: bool, tokens: int
) -> None:
    outcome = await client.ask(f"mock-tokens-{tokens}", "hello", stream=stream)

    assert len(outcome.text.encode()) == 4 * tokens
    assert outcome.usage == (2, tokens)
    assert (await client.stats())["output_tokens"] == tokens


@both
async def test_an_answer_ends_at_the_limit_of_the_caller(client: Client, stream: bool) -> None:
    outcome = await client.ask("mock-tokens-64", limit=10, stream=stream)

    assert len(outcome.text) == 40
    assert outcome.usage == (2, 10)
    assert outcome.stop in ("length", "max_tokens")


@both
async def test_a_limit_that_is_just_enough_is_not_reached(client: Client, stream: bool) -> None:
    outcome = await client.ask("mock-tokens-10", limit=10, stream=stream)

    assert outcome.usage == (2, 10)
    assert outcome.stop in ("stop", "end_turn")


@both
async def test_a_limit_never_cuts_a_character(client: Client, stream: bool) -> None:
    outcome = await client.ask("mock-echo", "日本語", limit=2, stream=stream)

    assert outcome.text == "日本"
    assert outcome.usage == (3, 2)
    assert outcome.stop in ("length", "max_tokens")


@both
async def test_no_usage_leaves_the_figures_out(client: Client, stream: bool) -> None:
    response = await client.post("mock-no-usage", "hello", stream=stream)

    assert response.status_code == 200
    assert "hell" in response.text
    assert 'usage":' not in response.text
    assert (await client.stats())["output_tokens"] == 2


@both
async def test_equal_calls_get_answers_with_identities_of_their_own(
    client: Client, stream: bool
) -> None:
    first = await client.post("mock-echo", stream=stream)
    second = await client.post("mock-echo", stream=stream)

    assert first.content != second.content
    assert len(first.content) == len(second.content)
    assert b"\x00" not in first.content


async def test_a_streamed_answer_has_its_events_in_the_order_of_the_dialect(
    client: Client,
) -> None:
    outcome = await client.ask("mock-tokens-3", stream=True)

    assert (
        outcome.events
        == {
            "openai": ["role", *["content"] * 3, "finish", "usage", "done"],
            "anthropic": [
                "message_start",
                "content_block_start",
                "ping",
                *["content_block_delta"] * 3,
                "content_block_stop",
                "message_delta",
                "message_stop",
            ],
        }[client.dialect]
    )


async def test_openai_streams_carry_usage_only_when_it_was_asked_for(
    provider: MockServer, client: Client
) -> None:
    body = client.body("mock-echo", stream=True)
    body.pop("stream_options", None)

    text = (await client.http.post("/v1/chat/completions", json=body)).text

    assert '"usage"' not in text
    assert text.endswith("data: [DONE]\n\n")


async def test_anthropic_streams_start_with_a_provisional_count(client: Client) -> None:
    body = client.body("mock-tokens-9", stream=True) | {"max_tokens": 100}
    body.pop("stream_options", None)

    text = (await client.http.post("/v1/messages", json=body)).text

    start = text.split("\n\n")[0]
    assert '"input_tokens":2' in start
    assert '"output_tokens":1' in start


async def test_openai_input_is_the_text_of_all_messages_and_parts(client: Client) -> None:
    parts = [
        {"type": "text", "text": "what is "},
        {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}},
        {"type": "text", "text": "this?"},
    ]
    messages = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": None},
        {"role": "user", "content": parts},
        {"role": "assistant", "content": "well,"},
    ]

    body = {"model": "mock-echo", "messages": messages}
    answer = (await client.http.post("/v1/chat/completions", json=body)).json()

    assert answer["choices"][0]["message"]["content"] == "what is this?"
    assert answer["usage"]["prompt_tokens"] == 7  # 8 + 2 + 0 + 13 + 5 = 28 bytes
    assert answer["usage"]["completion_tokens"] == 4


async def test_anthropic_input_has_the_system_prompt_and_tool_results(client: Client) -> None:
    result = [{"type": "text", "text": "sunny"}]
    messages = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": [{"type": "tool_use", "id": "t", "input": {}}]},
        {"role": "user", "content": [{"type": "tool_result", "content": result}]},
    ]
    system = [{"type": "text", "text": "be brief"}]

    body = {"model": "x", "max_tokens": 9, "system": system, "messages": messages}
    answer = (await client.http.post("/v1/messages", json=body)).json()

    assert answer["content"][0]["text"] == "sunny"
    assert answer["usage"]["input_tokens"] == 4  # 8 + 2 + 5 = 15 bytes


async def test_the_smaller_of_two_openai_limits_counts(client: Client) -> None:
    body = {
        "model": "mock-tokens-9",
        "messages": [{"role": "user", "content": "hi"}],
        "max_tokens": 3,
        "max_completion_tokens": 5,
    }

    answer = (await client.http.post("/v1/chat/completions", json=body)).json()

    assert answer["usage"]["completion_tokens"] == 3
