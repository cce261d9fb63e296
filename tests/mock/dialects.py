"""A caller of either dialect, so that one test can state what both of them do."""

import asyncio
import json
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any

import httpx

PATHS = {"openai": "/v1/chat/completions", "anthropic": "/v1/messages"}


@dataclass(frozen=True)
class Outcome:
    """An answer of either dialect in common terms; usage is None where it was not reported."""

    text: str
    stop: str | None
    usage: tuple[int, int] | None
    events: list[str]


@dataclass(frozen=True)
class Client:
    dialect: str
    http: httpx.AsyncClient

    @property
    def path(self) -> str:
        return PATHS[self.dialect]

    def body(
        self, model: str, text: str = "hello", *, limit: int | None = None, stream: bool = False
    ) -> dict[str, Any]:
        body: dict[str, Any] = {"model": model, "messages": [{"role": "user", "content": text}]}
        if self.dialect == "anthropic":
            body["max_tokens"] = 1_000_000 if limit is None else limit
        elif limit is not None:
            body["max_completion_tokens"] = limit
        if stream:
            body["stream"] = True
            if self.dialect == "openai":
                body["stream_options"] = {"include_usage": True}
        return body

    async def post(self, model: str, text: str = "hello", **options: Any) -> httpx.Response:
        return await self.http.post(self.path, json=self.body(model, text, **options))

    async def ask(self, model: str, text: str = "hello", **options: Any) -> Outcome:
        """Return the whole answer, streamed or not."""
        response = await self.post(model, text, **options)
        assert response.status_code == 200, response.text
        if options.get("stream"):
            assert response.headers["content-type"].startswith("text/event-stream")
            assert response.headers["transfer-encoding"] == "chunked"
            return self.outcome_of_stream(response.text)
        assert response.headers["content-type"] == "application/json"
        assert int(response.headers["content-length"]) == len(response.content)
        return self._outcome_of_object(response.json())

    def stream(
        self, model: str, text: str = "hello"
    ) -> AbstractAsyncContextManager[httpx.Response]:
        body = self.body(model, text, stream=True)
        return self.http.stream("POST", self.path, json=body)

    async def stats(self) -> dict[str, int]:
        stats: dict[str, int] = (await self.http.get("/mock/stats")).json()
        return stats

    def error_of(self, response: httpx.Response) -> tuple[str, str | None]:
        """Return type and code of an error, after checking its shape."""
        body = response.json()
        assert body["error"]["message"]
        if self.dialect == "anthropic":
            assert body["type"] == "error"
            assert body["request_id"].startswith("req_")
            assert set(body["error"]) == {"type", "message"}
            return body["error"]["type"], None
        assert set(body["error"]) == {"message", "type", "param", "code"}
        return body["error"]["type"], body["error"]["code"]

    def outcome_of_stream(self, text: str) -> Outcome:
        blocks = [block for block in text.split("\n\n") if block]
        if self.dialect == "anthropic":
            return _anthropic_stream(blocks)
        return _openai_stream(blocks)

    def _outcome_of_object(self, body: dict[str, Any]) -> Outcome:
        usage = body.get("usage")
        if self.dialect == "anthropic":
            pair = usage and (usage["input_tokens"], usage["output_tokens"])
            return Outcome(body["content"][0]["text"], body["stop_reason"], pair, [])
        if usage:
            assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
        pair = usage and (usage["prompt_tokens"], usage["completion_tokens"])
        choice = body["choices"][0]
        return Outcome(choice["message"]["content"], choice["finish_reason"], pair, [])


async def until(condition: Callable[[], bool], *, deadline_s: float = 1) -> None:
    """Wait for `condition`; TimeoutError after `deadline_s`."""
    async with asyncio.timeout(deadline_s):
        while not condition():
            await asyncio.sleep(0.002)


def _anthropic_stream(blocks: list[str]) -> Outcome:
    events, text, stop, usage = [], "", None, None
    for block in blocks:
        name, data = block.split("\n")
        payload = json.loads(data.removeprefix("data: "))
        assert name == f"event: {payload['type']}"
        events.append(payload["type"])
        if payload["type"] == "content_block_delta":
            text += payload["delta"]["text"]
        if payload["type"] == "message_delta":
            stop = payload["delta"]["stop_reason"]
            counts = payload.get("usage")
            usage = counts and (counts["input_tokens"], counts["output_tokens"])
    return Outcome(text, stop, usage, events)


def _openai_stream(blocks: list[str]) -> Outcome:
    events, text, stop, usage, ids = [], "", None, None, set()
    for block in blocks:
        data = block.removeprefix("data: ")
        if data == "[DONE]":
            events.append("done")
            continue
        chunk = json.loads(data)
        ids.add(chunk["id"])
        counts = chunk.get("usage")
        if not chunk["choices"]:
            events.append("usage")
            usage = (counts["prompt_tokens"], counts["completion_tokens"])
            continue
        assert counts is None
        choice = chunk["choices"][0]
        if choice["finish_reason"]:
            events.append("finish")
            stop = choice["finish_reason"]
        elif "role" in choice["delta"]:
            events.append("role")
        else:
            events.append("content")
            text += choice["delta"]["content"]
    assert len(ids) <= 1, "all chunks of a stream have one id"
    return Outcome(text, stop, usage, events)
