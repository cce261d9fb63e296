from dataclasses import replace

import pytest

from dataplane.domain.prices import Price, PriceBook
from dataplane.domain.principals import LimitEntry
from tests.pipeline.conftest import DataPlane
from tests.pipeline.scripted import ScriptedProvider
from tests.pipeline.wire import check_refusal

SPEND = (LimitEntry("spend", "month", 10**12), LimitEntry("requests", "day", 100))
ERROR = b'{"error":{"message":"secret of theirs sk-abc","type":"t","param":"p","code":%b}}'
PLAIN = ERROR % b'"c"'
HTML = b"<html><body>nginx sk-abc</body></html>"
# status and body of the provider -> status and code for callers of both dialects.
TABLE = [
    (400, HTML, 400, "invalid_request"),
    (401, PLAIN, 502, "upstream_auth"),
    (403, PLAIN, 502, "upstream_auth"),
    (403, HTML, 502, "upstream_auth"),
    (404, PLAIN, 404, "model_not_found"),
    (408, PLAIN, 504, "upstream_timeout"),
    (409, PLAIN, 502, "upstream_error"),
    (413, PLAIN, 413, "request_too_large"),
    (429, PLAIN, 429, "rate_limit_exceeded"),
    (429, ERROR % b'"insufficient_quota"', 503, "provider_quota_exhausted"),
    (400, b'{"type":"error","error":{"type":"invalid_request_error","message":'
          b'"Your credit balance is too low to access the API"}}', 503, "provider_quota_exhausted"),
    (400, b'{"error":{"code":400,"details":[{"reason":"API_KEY_INVALID"}]}}', 502, "upstream_auth"),
    (500, PLAIN, 502, "upstream_error"),
    (500, ERROR % b"500", 502, "upstream_error"),
    (500, b"\xff\xfe", 502, "upstream_error"),
    (500, b"[" * 5000, 502, "upstream_error"),
    (502, HTML, 502, "upstream_error"),
    (503, HTML, 503, "overloaded"),
    (504, HTML, 504, "upstream_timeout"),
    (529, PLAIN, 503, "overloaded"),
    (302, PLAIN, 502, "upstream_error"),
    (200, HTML, 502, "upstream_invalid_response"),
    (200, b"", 502, "upstream_invalid_response"),
    (200, b'{"choices":[', 502, "upstream_invalid_response"),
    (200, b'{"x":"\xff', 502, "upstream_invalid_response"),
    (200, b'{"x":' + b"[" * 5000, 502, "upstream_invalid_response"),
    (200, b'{"type":"error","error":{"message":"sk-abc"}}', 502, "upstream_error"),
]  # fmt: skip


@pytest.mark.parametrize(("status", "body", "seen", "code"), TABLE)
async def test_a_providers_error_is_told_in_our_words_and_costs_nothing(
    data_plane: DataPlane,
    provider: ScriptedProvider,
    status: int,
    body: bytes,
    seen: int,
    code: str,
) -> None:
    data_plane.calls(provider.url, user=SPEND)
    provider.answers(status, body, "x-ratelimit-remaining-requests: 7", "location: /elsewhere")
    asks = {"openai": data_plane.chat, "anthropic": data_plane.message}
    cases = [(dialect, is_stream) for dialect in asks for is_stream in (False, True)]

    for count, (dialect, is_stream) in enumerate(cases, start=1):
        answer = await asks[dialect](stream=is_stream)

        check_refusal(answer, seen, code, dialect)
        assert "sk-abc" not in answer.text
        assert answer.headers.get("x-ratelimit-remaining-requests") != "7"
        event = data_plane.records.closes[-1]
        assert (event.state, event.error_code, event.charged_nanousd) == ("settled", code, 0)
        assert (event.http_status, event.dialect, event.stream) == (seen, dialect, is_stream)
        assert len(data_plane.records.closes) == len(provider.received) == count
    assert await data_plane.held_nanousd() == 0
    assert await data_plane.counted("user_requests_per_day") == len(cases)


@pytest.mark.parametrize("dialect", ["openai", "anthropic"])
@pytest.mark.parametrize("status", [400, 422])
async def test_a_providers_own_400_passes_as_it_is(
    data_plane: DataPlane, provider: ScriptedProvider, dialect: str, status: int
) -> None:
    data_plane.calls(provider.url, user=SPEND)
    provider.answers(status, PLAIN)
    ask = data_plane.chat if dialect == "openai" else data_plane.message

    answer = await ask()

    assert (answer.status_code, answer.content) == (status, PLAIN)
    assert answer.headers["x-tollkeeper-error"] == "invalid_request"
    [event] = data_plane.records.closes
    assert (event.state, event.http_status, event.charged_nanousd) == ("settled", status, 0)
    assert await data_plane.held_nanousd() == 0


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ([], "1"),
        (["retry-after: 7"], "7"),
        (["retry-after: 7", "retry-after-ms: 1500"], "2"),
        (["retry-after: 999999999999999999999"], "3600"),
        (["retry-after: Fri, 21 Nov 2026 12:00:00 GMT"], "1"),
        (["retry-after: -1"], "1"),
    ],
)
async def test_a_providers_wait_hint_is_passed_on(
    data_plane: DataPlane, provider: ScriptedProvider, headers: list[str], seconds: str
) -> None:
    data_plane.calls(provider.url)
    provider.answers(429, PLAIN, *headers)

    answer = await data_plane.chat()

    assert answer.headers["retry-after"] == seconds
    assert answer.json()["error"]["details"] == {"layer": "provider"}


@pytest.mark.parametrize("status", [401, 404, 429, 500, 503])
async def test_the_mocks_errors_are_those_of_a_provider(data_plane: DataPlane, status: int) -> None:
    codes = {401: 502, 404: 404, 429: 429, 500: 502, 503: 503}

    answer = await data_plane.chat(model=f"mock-status-{status}")

    assert answer.status_code == codes[status]


async def test_a_content_type_of_any_characters_does_not_break_the_answer(
    data_plane: DataPlane, provider: ScriptedProvider
) -> None:
    data_plane.calls(provider.url)
    provider.answers(200, b'{"choices":[],"usage":{}}', content_type="application/json; x=…")

    answer = await data_plane.chat()

    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/json")


async def test_a_fee_per_request_is_for_answers_only(
    data_plane: DataPlane, provider: ScriptedProvider
) -> None:
    data_plane.calls(provider.url, user=SPEND)
    fee = Price("fee", 1, "mock", "*", 0, 0, 0, 0, 0, 0, request_nanousd=777)
    data_plane.use(replace(data_plane.configuration.get(), prices=PriceBook([fee])))
    assert (await data_plane.chat()).status_code == 200
    provider.answers(500, PLAIN)
    await data_plane.chat()

    assert [event.charged_nanousd for event in data_plane.records.closes] == [777, 0]
    assert await data_plane.counted("user_spend_per_month") == 777
