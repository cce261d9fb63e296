"""`GET /v1/models`: what this caller may use, never a provider's own list as it is."""

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Final

import msgspec

from dataplane.domain.authentication import authenticate
from dataplane.domain.calls import Dialect
from dataplane.domain.catalogue import models_for
from dataplane.domain.credentials import parse_credentials
from dataplane.domain.refusals import Reason, Refusal
from dataplane.http.errors import refused
from dataplane.http.exchange import JSON_TYPE, HttpAnswer, HttpRequest
from dataplane.pipeline import Pipeline

# The gateway does not know when a model was made; clients only want a number here.
_CREATED: Final = 0


def list_models(pipeline: Pipeline, request: HttpRequest) -> HttpAnswer:
    """Answer with all models, in OpenAI's shape or, with `anthropic-version`, in Anthropic's."""
    dialect = _dialect_of(request)
    try:
        names = _names(pipeline, request)
    except Refusal as refusal:
        return refused(refusal, dialect, pipeline.new_request_id())
    return _answer(pipeline, _listing(names, dialect))


def get_model(pipeline: Pipeline, request: HttpRequest, model: str) -> HttpAnswer:
    """Answer with one model, or that the caller has none of that name."""
    dialect = _dialect_of(request)
    try:
        if model not in _names(pipeline, request):
            raise Refusal(Reason.MODEL_NOT_FOUND, "There is no such model.", param="model")
    except Refusal as refusal:
        return refused(refusal, dialect, pipeline.new_request_id())
    return _answer(pipeline, _entry(model, dialect))


def _names(pipeline: Pipeline, request: HttpRequest) -> tuple[str, ...]:
    snapshot, now_ms = pipeline.current.get(), pipeline.clock_ms()
    principal = authenticate(snapshot, parse_credentials(request.headers), now_ms)
    return models_for(snapshot, principal, now_ms)


def _dialect_of(request: HttpRequest) -> Dialect:
    return Dialect.ANTHROPIC if "anthropic-version" in request.headers else Dialect.OPENAI


def _listing(names: Iterable[str], dialect: Dialect) -> dict[str, object]:
    data = [_entry(name, dialect) for name in names]
    if dialect is Dialect.OPENAI:
        return {"object": "list", "data": data}
    ends = {"first_id": data[0]["id"], "last_id": data[-1]["id"]} if data else {}
    return {"data": data, "has_more": False, "first_id": None, "last_id": None, **ends}


def _entry(name: str, dialect: Dialect) -> dict[str, object]:
    if dialect is Dialect.OPENAI:
        return {"id": name, "object": "model", "created": _CREATED, "owned_by": "tollkeeper"}
    created_at = datetime.fromtimestamp(_CREATED, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return {"type": "model", "id": name, "display_name": name, "created_at": created_at}


def _answer(pipeline: Pipeline, body: dict[str, object]) -> HttpAnswer:
    request_id = pipeline.new_request_id()
    headers = (
        ("content-type", JSON_TYPE),
        ("x-request-id", request_id),
        ("request-id", request_id),
    )
    return HttpAnswer(200, headers, msgspec.json.encode(body))
