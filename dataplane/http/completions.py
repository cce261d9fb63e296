"""The calls that buy tokens: decode → `async with pipeline.exchange(…)` → encode."""

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import Final
from urllib.parse import quote

from dataplane.domain.calls import Call, Dialect
from dataplane.domain.credentials import parse_credentials
from dataplane.domain.denials import usd
from dataplane.domain.refusals import Reason, Refusal
from dataplane.http.codecs import anthropic, openai
from dataplane.http.device_desk import note_caller
from dataplane.http.errors import error_event, refused
from dataplane.http.exchange import JSON_TYPE, HttpAnswer, HttpRequest
from dataplane.http.front import Front
from dataplane.http.ratelimit_headers import limit_headers
from dataplane.pipeline import Answer, Pipeline

# A provider's own 400 passes as it is; its header names our reason.
_FIRST_ERROR: Final = 400
# What a model's name may hold and a header too; the rest is percent-encoded.
_VISIBLE: Final = "".join(map(chr, range(0x21, 0x7F)))
_DEGRADED: Final = ("x-tollkeeper-limits", "degraded")
_NO_BUFFERING: Final = (("cache-control", "no-cache"), ("x-accel-buffering", "no"))


@dataclass(frozen=True, slots=True)
class CompletionApi:
    """One path whose callers speak one dialect."""

    path: str
    dialect: Dialect
    call_of: Callable[[str, bytes, Mapping[str, str], str], Call]


APIS: Final = (
    CompletionApi("/v1/chat/completions", Dialect.OPENAI, openai.call_of),
    CompletionApi("/v1/messages", Dialect.ANTHROPIC, anthropic.call_of),
)


@asynccontextmanager
async def completion(
    front: Front, api: CompletionApi, request: HttpRequest
) -> AsyncIterator[HttpAnswer]:
    """Serve one call and hold its answer open while the caller reads it.

    It never raises a `Refusal`: that is an answer too, in the caller's dialect.
    """
    pipeline = front.pipeline
    request_id = pipeline.new_request_id()
    async with AsyncExitStack() as stack:
        try:
            _check_content_type(request.headers)
            credentials = parse_credentials(request.headers)
            if credentials.device_id:
                note_caller(front.devices, credentials, request)
            call = api.call_of(request_id, request.body, request.headers, request.address)
            answer = await stack.enter_async_context(pipeline.exchange(call, credentials))
        except Refusal as refusal:
            limits = _limits_of(refusal, api.dialect, pipeline.clock_ms())
            yield refused(refusal, api.dialect, request_id, limits)
            return
        if answer.stream is None:
            yield HttpAnswer(answer.status, _headers(pipeline, answer), answer.body)
            return
        wants_cost = request.headers.get("x-tollkeeper-cost") == "1"
        async with aclosing(_events(answer, answer.stream, wants_cost=wants_cost)) as events:
            yield HttpAnswer(answer.status, _headers(pipeline, answer), stream=events)


async def _events(
    answer: Answer, stream: AsyncIterator[bytes], *, wants_cost: bool
) -> AsyncGenerator[bytes]:
    """Yield a stream; where it fails, an error event is its end."""
    try:
        async for chunk in stream:
            yield chunk
    except Refusal as refusal:
        call = answer.bill.admission.call
        yield error_event(refusal, call.dialect, call.request_id)
    if wants_cost:
        yield b": tollkeeper-cost-usd=%b\n\n" % usd(answer.bill.cost_nanousd).encode()


def _limits_of(refusal: Refusal, dialect: Dialect, now_ms: int) -> tuple[tuple[str, str], ...]:
    shown = limit_headers(refusal.standings, dialect, now_ms)
    return (_DEGRADED, *shown) if refusal.is_degraded else shown


def _headers(pipeline: Pipeline, answer: Answer) -> tuple[tuple[str, str], ...]:
    bill = answer.bill
    it = bill.admission
    call = it.call
    headers = [
        ("content-type", answer.content_type or JSON_TYPE),
        ("x-request-id", call.request_id),
        ("request-id", call.request_id),
        ("x-tollkeeper-provider", it.attempt.provider.name),
        ("x-tollkeeper-model", quote(it.attempt.model, safe=_VISIBLE)),
        ("x-tollkeeper-attempts", str(bill.attempts)),
        ("x-tollkeeper-config-revision", str(it.snapshot.position.revision)),
        ("x-tollkeeper-latency-ms", str(bill.elapsed_ms)),
    ]
    if it.is_degraded:
        headers.append(_DEGRADED)
    if answer.status >= _FIRST_ERROR:
        headers.append(("x-tollkeeper-error", Reason.INVALID_REQUEST.value))
    if call.client_request_id:
        headers.append(("x-client-request-id", call.client_request_id))
    if answer.stream is None:
        headers.append(("x-tollkeeper-cost-usd", usd(bill.cost_nanousd)))
    else:
        headers += _NO_BUFFERING
    now_ms = pipeline.clock_ms()
    plan = None if it.is_degraded else it.plan
    return (*headers, *limit_headers(it.tried, call.dialect, now_ms, plan))


def _check_content_type(headers: Mapping[str, str]) -> None:
    content_type = headers.get("content-type", JSON_TYPE).partition(";")[0]
    if content_type.strip().lower() != JSON_TYPE:
        raise Refusal(Reason.UNSUPPORTED_MEDIA_TYPE, "The body must be application/json.")
