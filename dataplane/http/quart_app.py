"""Quart serves every path; its views only turn requests into values and answers into responses."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import cast

import structlog
from hypercorn.typing import ASGISendCallable
from quart import Quart, Response, request
from quart.asgi import ASGIHTTPConnection
from quart.wrappers import Request
from werkzeug.exceptions import HTTPException, MethodNotAllowed

from dataplane.domain import registration
from dataplane.domain.client_addresses import ClientAddresses
from dataplane.domain.refusals import Reason, Refusal
from dataplane.http.completions import APIS, CompletionApi, completion
from dataplane.http.devices import my_device, register_device
from dataplane.http.errors import refused
from dataplane.http.exchange import HttpAnswer, HttpRequest
from dataplane.http.front import Front
from dataplane.http.health import Health
from dataplane.http.models import get_model, list_models
from dataplane.http.reading import (
    MAX_BODY_BYTES,
    Scope,
    check_length,
    dialect_of,
    headers_of,
    peer_of,
    too_large,
)
from dataplane.http.usage import OwnNumbers, quota, usage_stats, usage_summary
from dataplane.pipeline import Pipeline

_log = structlog.get_logger(__name__)
_HELD = "tollkeeper.held"
_Answerer = Callable[[OwnNumbers, HttpRequest], Awaitable[HttpAnswer]]
_REASONS = {
    404: (Reason.NOT_FOUND, "There is no such path."),
    405: (Reason.METHOD_NOT_ALLOWED, "This path does not take that method."),
    415: (Reason.UNSUPPORTED_MEDIA_TYPE, "The body must be application/json."),
}


class HoldingConnection(ASGIHTTPConnection):
    """Closes what a request holds open when its response is sent, or its client has left."""

    async def handle_request(self, request: Request, send: ASGISendCallable) -> None:
        """Serve one request."""
        async with AsyncExitStack() as stack:
            cast("dict[str, object]", self.scope)[_HELD] = stack
            await super().handle_request(request, send)


def quart_app(front: Front) -> Quart:
    """Return the application with every path of the data plane."""
    app = Quart("dataplane", static_folder=None)
    app.asgi_http_class = HoldingConnection
    app.config["MAX_CONTENT_LENGTH"] = MAX_BODY_BYTES
    app.config["RESPONSE_TIMEOUT"] = None  # streams last for hours
    _add_completions(app, front)
    _add_models(app, front)
    _add_devices(app, front)
    _add_numbers(app, front)
    _add_health(app, front.health)
    _add_errors(app, front.pipeline)
    return app


def _add_completions(app: Quart, front: Front) -> None:
    for api in APIS:

        async def view(api: CompletionApi = api) -> Response:
            stack = cast("dict[str, AsyncExitStack]", request.scope)[_HELD]
            value = await _value(front.addresses)
            answer = await stack.enter_async_context(completion(front, api, value))
            return _response(answer)

        app.add_url_rule(api.path, f"completion {api.path}", view, methods=["POST"])


def _add_models(app: Quart, front: Front) -> None:
    @app.get("/v1/models")
    async def models() -> Response:
        return _response(list_models(front.pipeline, await _value(front.addresses)))

    @app.get("/v1/models/<path:model>")
    async def model(model: str) -> Response:
        return _response(get_model(front.pipeline, await _value(front.addresses), model))


def _add_devices(app: Quart, front: Front) -> None:
    @app.post("/v1/devices/register")
    async def register() -> Response:
        value = await _value(front.addresses, registration.MAX_BODY_BYTES)
        return _response(await register_device(front.devices, value))

    @app.get("/v1/devices/me")
    async def me() -> Response:
        return _response(my_device(front.devices, await _value(front.addresses)))


def _add_numbers(app: Quart, front: Front) -> None:
    for path, answer_to in (
        ("/v1/usage/stats", usage_stats),
        ("/v1/usage/summary", usage_summary),
        ("/v1/llm/quota", quota),
    ):

        async def view(answer_to: _Answerer = answer_to) -> Response:
            return _response(await answer_to(front.numbers, await _value(front.addresses)))

        app.add_url_rule(path, f"numbers {path}", view, methods=["GET"])


def _add_health(app: Quart, health: Health) -> None:
    async def live() -> Response:
        return _response(health.live())

    async def ready() -> Response:
        return _response(health.ready())

    @app.get("/")
    async def about() -> Response:
        return _response(health.about())

    for path in ("/health", "/__health", "/healthz", "/livez"):
        app.add_url_rule(path, f"live {path}", live, methods=["GET"])
    for path in ("/health/ready", "/readyz"):
        app.add_url_rule(path, f"ready {path}", ready, methods=["GET"])


def _add_errors(app: Quart, pipeline: Pipeline) -> None:
    @app.errorhandler(HTTPException)
    async def http_error(error: HTTPException) -> Response:
        if error.code == 413:
            return _refused(pipeline, too_large())
        reason, message = _REASONS.get(
            error.code or 0, (Reason.INVALID_REQUEST, "The request is malformed.")
        )
        refusal = Refusal(reason, message)
        if isinstance(error, MethodNotAllowed) and error.valid_methods:
            return _refused(pipeline, refusal, ("allow", ", ".join(sorted(error.valid_methods))))
        return _refused(pipeline, refusal)

    @app.errorhandler(Refusal)
    async def refusal_error(refusal: Refusal) -> Response:
        return _refused(pipeline, refusal)

    @app.errorhandler(Exception)
    async def any_error(error: Exception) -> Response:
        # The outermost edge: the caller gets a code, the log the trace.
        _log.error("request_failed", path=request.path, exc_info=error)
        message = "The gateway failed; the request id finds it in the log."
        return _refused(pipeline, Refusal(Reason.INTERNAL, message))


async def _value(addresses: ClientAddresses, max_body_bytes: int = MAX_BODY_BYTES) -> HttpRequest:
    headers = headers_of(request.scope["headers"])
    check_length(headers, max_body_bytes)
    body = cast("bytes", await request.get_data(cache=False))
    address = addresses.of(peer_of(cast("Scope", request.scope)), headers)
    return HttpRequest(request.method, request.path, headers, body, address)


def _response(answer: HttpAnswer) -> Response:
    body: bytes | AsyncIterator[bytes] = answer.body if answer.stream is None else answer.stream
    response = Response(body, status=answer.status)
    response.timeout = None
    response.headers.clear()
    for name, value in answer.headers:
        response.headers.add(name, value)
    if answer.stream is None:
        response.headers["content-length"] = str(len(answer.body))
    return response


def _refused(pipeline: Pipeline, refusal: Refusal, *headers: tuple[str, str]) -> Response:
    dialect = dialect_of(request.path, headers_of(request.scope["headers"]))
    return _response(refused(refusal, dialect, pipeline.new_request_id(), headers))
