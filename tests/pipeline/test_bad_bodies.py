import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.pipeline.conftest import DataPlane
from tests.pipeline.wire import check_refusal, head, raw

PATHS = {"openai": "/v1/chat/completions", "anthropic": "/v1/messages"}
OK = '"messages":[{"role":"user","content":"x"}],"max_tokens":20'
MODEL = '"model":"mock-echo"'
DEEP = 10_000
# Bodies that are refused in both dialects, and the field that is blamed.
BAD: dict[str, tuple[str | bytes, str | None]] = {
    "empty": ("", None),
    "not JSON": ("model=gpt", None),
    "cut": ('{"model":"mock-echo","messages":[', None),
    "two values": ("{%s,%s} {}" % (MODEL, OK), None),
    "a list": ("[1]", None),
    "a number": ("5", None),
    "null": ("null", None),
    "invalid UTF-8 in a text": (b'{"model":"a\xff",%b}' % OK.encode(), None),
    "invalid UTF-8 in a field that is not read": (
        b'{"x":"\xff",%b,%b}' % (MODEL.encode(), OK.encode()),
        None,
    ),
    "a byte order mark": ("\ufeff{%s,%s}" % (MODEL, OK), None),
    "a lone surrogate": (r'{"model":"\ud800",%s}' % OK, None),
    "NaN": ('{%s,%s,"temperature":NaN}' % (MODEL, OK), None),
    "Infinity": ('{%s,%s,"max_tokens":-Infinity}' % (MODEL, OK), None),
    "nested too deeply": ("[" * DEEP, None),
    "nested too deeply inside": (
        '{%s,%s,"x":%s%s}' % (MODEL, OK, "[" * DEEP, "]" * DEEP),
        None,
    ),
    "no model": ("{%s}" % OK, "model"),
    "no messages": ('{%s,"max_tokens":20}' % MODEL, "messages"),
    "a model that is a number": ('{"model":5,%s}' % OK, "model"),
    "a model that is empty": ('{"model":"",%s}' % OK, "model"),
    "a model that is too long": ('{"model":"%s",%s}' % ("m" * 201, OK), "model"),
    "a model with a line break": (r'{"model":"a\nb",%s}' % OK, "model"),
    "messages that are a text": ('{%s,"messages":"hi","max_tokens":20}' % MODEL, "messages"),
    "a message that is a number": ('{%s,"messages":[5],"max_tokens":20}' % MODEL, "messages[0]"),
    "a content that is a number": (
        '{%s,"messages":[{"content":5}],"max_tokens":20}' % MODEL,
        "messages[0].content",
    ),
    "a text that is a number": (
        '{%s,"messages":[{"content":[{"text":5}]}],"max_tokens":20}' % MODEL,
        "messages[0].content[0].text",
    ),
    "a stream that is a text": ('{%s,%s,"stream":"yes"}' % (MODEL, OK), "stream"),
    "a cap that is a text": ('{%s,%s,"max_tokens":"9"}' % (MODEL, OK), "max_tokens"),
    "a cap that is true": ('{%s,%s,"max_tokens":true}' % (MODEL, OK), "max_tokens"),
    "a cap of nothing": ('{%s,%s,"max_tokens":0}' % (MODEL, OK), "max_tokens"),
    "a negative cap": ('{%s,%s,"max_tokens":-1}' % (MODEL, OK), "max_tokens"),
    "a cap beyond integers": (
        '{%s,%s,"max_tokens":%s}' % (MODEL, OK, "9" * 5000),
        "max_tokens",
    ),
    "a cap beyond floats": ('{%s,%s,"max_tokens":1e400}' % (MODEL, OK), "max_tokens"),
}
BAD_OPENAI: dict[str, tuple[str | bytes, str | None]] = {
    "no choices": ('{%s,%s,"n":0}' % (MODEL, OK), "n"),
    "too many choices": ('{%s,%s,"n":129}' % (MODEL, OK), "n"),
    "a newer cap that is negative beside a good one": (
        '{%s,%s,"max_completion_tokens":-1}' % (MODEL, OK),
        "max_completion_tokens",
    ),
    "options that are a number": ('{%s,%s,"stream_options":5}' % (MODEL, OK), "stream_options"),
    "an option that is a number": (
        '{%s,%s,"stream_options":{"include_usage":5}}' % (MODEL, OK),
        "stream_options.include_usage",
    ),
}
BAD_ANTHROPIC: dict[str, tuple[str | bytes, str | None]] = {
    "no cap": ('{%s,"messages":[]}' % MODEL, "max_tokens"),
    "a system that is a number": ('{%s,%s,"system":5}' % (MODEL, OK), "system"),
}


@pytest.mark.parametrize("dialect", PATHS)
async def test_a_bad_body_is_refused_and_the_field_named(
    data_plane: DataPlane, dialect: str
) -> None:
    own = BAD_OPENAI if dialect == "openai" else BAD_ANTHROPIC
    for name, (text, param) in {**BAD, **own}.items():
        body = text.encode() if isinstance(text, str) else text

        answer = await data_plane.client.post(
            PATHS[dialect], content=body, headers={"content-type": "application/json"}
        )

        error = check_refusal(answer, 400, "invalid_request", dialect)
        assert param is None or param in error["message"], name
        assert dialect == "anthropic" or error["param"] == param, name
    assert (data_plane.records.opens, data_plane.mock.stats.requests) == ([], 0)


@pytest.mark.parametrize("dialect", PATHS)
async def test_every_depth_of_nesting_is_served_or_refused(
    data_plane: DataPlane, dialect: str
) -> None:
    # Another field is replaced on the way, by code that runs deeper than the first look.
    for depth in range(700, 1010, 3):
        body = '{"model":"fast",%s,"x":%s%s}' % (OK, "[" * depth, "]" * depth)
        answer = await data_plane.client.post(PATHS[dialect], content=body)
        if answer.status_code != 200:
            check_refusal(answer, 400, "invalid_request", dialect)
    assert answer.status_code == 400
    assert all(event.state in ("settled", "released") for event in data_plane.records.closes)
    assert len(data_plane.records.closes) == len(data_plane.records.opens)


@pytest.mark.parametrize("dialect", PATHS)
async def test_a_body_that_is_announced_as_too_large_is_not_waited_for(
    data_plane: DataPlane, dialect: str
) -> None:
    answer = await raw(data_plane, head(PATHS[dialect], b"content-length: 10485761"))

    check_refusal(answer, 413, "request_too_large", dialect)


@pytest.mark.parametrize("dialect", PATHS)
async def test_a_body_that_grows_too_large_is_refused(data_plane: DataPlane, dialect: str) -> None:
    piece = b"10000\r\n" + b" " * 0x10000 + b"\r\n"

    answer = await raw(
        data_plane, head(PATHS[dialect], b"transfer-encoding: chunked"), *[piece] * 161
    )

    check_refusal(answer, 413, "request_too_large", dialect)


@pytest.mark.parametrize("dialect", PATHS)
async def test_a_large_body_within_the_limit_is_served(data_plane: DataPlane, dialect: str) -> None:
    text = "x" * (10 * 1024 * 1024 - 200)

    answer = await (data_plane.chat if dialect == "openai" else data_plane.message)(
        text=text, max_tokens=20
    )

    assert answer.status_code == 200


_JSON: Any = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=6,
)
_MESSAGE = st.fixed_dictionaries(
    {},
    optional={
        "role": _JSON,
        "content": _JSON
        | st.lists(
            st.fixed_dictionaries(
                {}, optional={"type": _JSON, "text": _JSON, "source": _JSON, "content": _JSON}
            ),
            max_size=2,
        ),
    },
)
_BODY = st.fixed_dictionaries(
    {},
    optional={
        "model": st.sampled_from(["mock-echo", "fast", "mock-日本", "other", ""]) | _JSON,
        "messages": st.lists(_MESSAGE, max_size=2) | _JSON,
        "max_tokens": st.integers(-2, 50) | _JSON,
        "max_completion_tokens": _JSON,
        "stream": st.booleans() | _JSON,
        "stream_options": _JSON | st.fixed_dictionaries({}, optional={"include_usage": _JSON}),
        "n": _JSON,
        "system": _JSON,
        "x": _JSON,
    },
)


@pytest.mark.parametrize("dialect", PATHS)
async def test_no_body_makes_the_gateway_fail(data_plane: DataPlane, dialect: str) -> None:
    bodies: list[bytes] = []

    @settings(
        max_examples=150,
        deadline=None,
        database=None,
        suppress_health_check=[HealthCheck.too_slow],
    )
    @given(_BODY, st.booleans())
    def collect(body: object, is_ascii: bool) -> None:
        text = json.dumps(body, ensure_ascii=is_ascii)
        bodies.append(text.encode("utf-8", "surrogatepass"))

    collect()
    for body in bodies:
        answer = await data_plane.client.post(PATHS[dialect], content=body)

        assert answer.status_code < 500, body
        if "x-tollkeeper-error" in answer.headers and "x-tollkeeper-model" not in answer.headers:
            code = answer.headers["x-tollkeeper-error"]
            check_refusal(answer, answer.status_code, code, dialect)
    assert len(data_plane.records.opens) == len(data_plane.records.closes)


async def test_a_model_of_any_script_has_headers_that_can_be_sent(data_plane: DataPlane) -> None:
    answer = await data_plane.chat(model="模型", max_tokens=20)

    assert answer.status_code == 200
    assert answer.headers["x-tollkeeper-model"] == "%E6%A8%A1%E5%9E%8B"
