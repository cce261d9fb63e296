import json
from dataclasses import replace

import pytest

from dataplane.domain.principals import LimitEntry
from dataplane.domain.providers import Credential, Router
from dataplane.domain.secret import Secret
from tests.pipeline.conftest import DataPlane
from tests.pipeline.scripted import ScriptedProvider

SPEND = (LimitEntry("spend", "month", 10**12),)
# Unusual on purpose: spaces, order, escapes, numbers and unknown fields must all survive.
REST = (
    b'"messages" : [ {"role":"user", "content":"caf\\u00e9 \\ud83d\\ude00 \xe2\x82\xac"} ],\n'
    b'\t"temperature":1.00,"x_unknown":{"b":1,"a":[1e5, -0.0, 12345678901234567890]}'
)


async def sent(data_plane: DataPlane, provider: ScriptedProvider, body: bytes) -> bytes:
    answer = await data_plane.client.post("/v1/chat/completions", content=body)
    assert answer.status_code == 200, answer.text
    return provider.received[-1].body


async def test_a_body_that_needs_nothing_arrives_byte_for_byte(
    data_plane: DataPlane, provider: ScriptedProvider
) -> None:
    data_plane.calls(provider.url)
    body = b' {"model":"m", %b , "max_tokens" : 20 } \n' % REST

    assert await sent(data_plane, provider, body) == body


async def test_a_call_without_an_output_cap_gets_one_and_keeps_its_bytes(
    data_plane: DataPlane, provider: ScriptedProvider
) -> None:
    data_plane.calls(provider.url, user=SPEND)

    arrived = await sent(data_plane, provider, b'{"model":"m",%b}' % REST)

    assert arrived == b'{"model":"m",%b,"max_tokens":4096}' % REST


async def test_a_call_that_no_budget_counts_gets_no_cap(
    data_plane: DataPlane, provider: ScriptedProvider
) -> None:
    data_plane.calls(provider.url, user=(LimitEntry("requests", "day", 10),))
    body = b'{"model":"m",%b}' % REST

    assert await sent(data_plane, provider, body) == body


@pytest.mark.parametrize("given", [b"", b',"max_tokens":null', b',"max_completion_tokens":null'])
async def test_providers_of_the_newer_kind_get_the_newer_name_of_the_cap(
    data_plane: DataPlane, provider: ScriptedProvider, given: bytes
) -> None:
    data_plane.calls(provider.url, user=SPEND)
    snapshot = data_plane.configuration.get()
    rule = snapshot.routers["r1"].rules[0]
    newer = replace(rule, provider=replace(rule.provider, kind="openai"))
    data_plane.use(replace(snapshot, routers={"r1": Router("r1", "default", (newer,))}))

    arrived = await sent(data_plane, provider, b'{"model":"m",%b%b}' % (REST, given))

    assert json.loads(arrived)["max_completion_tokens"] == 4096
    assert not json.loads(arrived).get("max_tokens")


@pytest.mark.parametrize(
    ("given", "arrives"),
    [
        (b'"max_completion_tokens":500', b'"max_completion_tokens":500,"max_tokens":500'),
        (
            b'"max_tokens":null,"max_completion_tokens":500',
            b'"max_tokens":500,"max_completion_tokens":500',
        ),
        (b'"max_tokens":20,"max_completion_tokens":500',) * 2,
        (b'"max_tokens":500,"max_completion_tokens":null',) * 2,
        (b'"max_tokens":500',) * 2,
        (b'"max_completion_tokens":null',) * 2,
    ],
)
async def test_a_callers_cap_of_the_newer_name_reaches_other_providers_under_both(
    data_plane: DataPlane, provider: ScriptedProvider, given: bytes, arrives: bytes
) -> None:
    data_plane.calls(provider.url)

    arrived = await sent(data_plane, provider, b'{"model":"m",%b,%b}' % (REST, given))

    assert arrived.endswith(b",%b}" % arrives)


@pytest.mark.parametrize("kind", ["openai", "azure_openai"])
@pytest.mark.parametrize("name", [b"max_tokens", b"max_completion_tokens"])
async def test_providers_of_the_newer_kind_get_a_callers_cap_as_it_is(
    data_plane: DataPlane, provider: ScriptedProvider, kind: str, name: bytes
) -> None:
    data_plane.calls(provider.url)
    snapshot = data_plane.configuration.get()
    rule = snapshot.routers["r1"].rules[0]
    newer = replace(rule, provider=replace(rule.provider, kind=kind))
    data_plane.use(replace(snapshot, routers={"r1": Router("r1", "default", (newer,))}))
    body = b'{"model":"m",%b,"%b":500}' % (REST, name)

    assert await sent(data_plane, provider, body) == body


async def test_a_cap_of_the_newer_name_is_refused_or_sent_at_every_depth_of_nesting(
    data_plane: DataPlane, provider: ScriptedProvider
) -> None:
    data_plane.calls(provider.url)
    caps = b'"max_tokens":null,"max_completion_tokens":500'
    for depth in range(700, 1010, 6):
        body = b'{"model":"m",%b,"x":%b%b,%b}' % (REST, b"[" * depth, b"]" * depth, caps)
        answer = await data_plane.client.post("/v1/chat/completions", content=body)
        assert answer.status_code in (200, 400), answer.text
        if answer.status_code == 200:
            assert json.loads(provider.received[-1].body)["max_tokens"] == 500
    assert answer.status_code == 400


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (b"", {"include_usage": True}),
        (b',"stream_options":null', {"include_usage": True}),
        (b',"stream_options":{}', {"include_usage": True}),
        (b',"stream_options": { } ', {"include_usage": True}),
        (b',"stream_options":{"include_usage":false}', {"include_usage": True}),
        (b',"stream_options":{"include_usage":null,"x":[1]}', {"include_usage": True, "x": [1]}),
        (b',"stream_options":{"x":1}', {"include_usage": True, "x": 1}),
    ],
)
async def test_a_stream_always_asks_the_provider_for_usage(
    data_plane: DataPlane, provider: ScriptedProvider, options: bytes, expected: object
) -> None:
    data_plane.calls(provider.url)

    arrived = await sent(
        data_plane, provider, b'{"model":"m","stream":true,%b%b}' % (REST, options)
    )

    assert json.loads(arrived)["stream_options"] == expected
    assert REST[REST.index(b"[") :].split(b"]")[0] in arrived


async def test_an_alias_changes_the_models_name_and_nothing_else(
    data_plane: DataPlane, provider: ScriptedProvider
) -> None:
    data_plane.calls(provider.url)

    arrived = await sent(data_plane, provider, b'{"model":"fast",%b}' % REST)

    values = REST[len(b'"messages" : ') : REST.index(b",\n")]
    assert b'"model":"mock-echo"' in arrived
    assert values in arrived
    assert b'"temperature":1.00' in arrived
    assert b'{"b":1,"a":[1e5, -0.0, 12345678901234567890]}' in arrived


@pytest.mark.parametrize(
    ("twice", "kept"),
    [
        (b'"model":"other","model":"m"', ("model", "m")),
        (b'"model":"other","\\u006dodel":"m"', ("model", "m")),
        (b'"model":"m","max_tokens":100000,"max_tokens":20', ("max_tokens", 20)),
        (b'"model":"m","max_tokens":100000,"max_token\\u0073":20', ("max_tokens", 20)),
        (b'"model":"m","n":100,"n":1', ("n", 1)),
        (b'"model":"m","stream":true,"stream":false', ("stream", False)),
        (b'"model":"m","stream":true,"\\u0073\\u0074ream":false', ("stream", False)),
    ],
)
async def test_what_is_checked_is_what_is_sent(
    data_plane: DataPlane, provider: ScriptedProvider, twice: bytes, kept: tuple[str, object]
) -> None:
    data_plane.calls(provider.url)

    arrived = await sent(data_plane, provider, b"{%b,%b}" % (twice, REST))

    pairs = json.loads(arrived, object_pairs_hook=lambda pairs: pairs)
    assert [value for name, value in pairs if name == kept[0]] == [kept[1]]
    assert b"\\u00" not in arrived[: arrived.index(b"messages")]
    [event] = data_plane.records.closes
    assert event.requested_model == "m"


async def test_anthropic_bodies_and_headers_pass(
    data_plane: DataPlane, provider: ScriptedProvider
) -> None:
    data_plane.calls(provider.url)
    provider.answers(200, b'{"type":"message","usage":{"input_tokens":3,"output_tokens":4}}')
    body = b'{"model":"m","max_tokens":20,%b}' % REST
    headers = {"anthropic-version": "2024-01-01", "anthropic-beta": "a,b", "x-other": "1"}

    answer = await data_plane.client.post("/v1/messages", content=body, headers=headers)

    assert answer.status_code == 200
    [request] = provider.received
    assert (request.line, request.body) == ("POST /v1/messages HTTP/1.1", body)
    assert request.headers["anthropic-version"] == "2024-01-01"
    assert request.headers["anthropic-beta"] == "a,b"
    assert "x-other" not in request.headers


async def test_the_provider_gets_its_own_credential_and_never_the_callers(
    data_plane: DataPlane, provider: ScriptedProvider
) -> None:
    data_plane.calls(provider.url)
    snapshot = data_plane.configuration.get()
    rule = snapshot.routers["r1"].rules[0]
    secret = Credential("c1", "main", 1, Secret(b"sk-provider-secret"))
    rule = replace(rule, provider=replace(rule.provider, credentials=(secret,)))
    data_plane.use(replace(snapshot, routers={"r1": Router("r1", "default", (rule,))}))
    provider.answers(200, b'{"choices":[],"usage":{"prompt_tokens":1}}')

    await data_plane.chat(model="m")
    await data_plane.message(model="m")

    openai, anthropic = provider.received
    assert openai.headers["authorization"] == "Bearer sk-provider-secret"
    assert anthropic.headers["x-api-key"] == "sk-provider-secret"
    for request in provider.received:
        assert "tk_live" not in str(request)
        assert "cookie" not in request.headers
