"""Anthropic's messages: request bodies to calls, refusals to bodies."""

import re
from collections.abc import Mapping
from typing import Final

import msgspec
from msgspec import UNSET, UnsetType

from dataplane.domain.calls import Call, Dialect
from dataplane.domain.refusals import Reason, Refusal
from dataplane.http.codecs.decoding import (
    Media,
    check_call,
    checked_cap,
    client_request_id,
    decoded,
    has_duplicates,
    is_visible,
    timeout_seconds,
)
from dataplane.http.codecs.server_tools import fields_of, names_twice, unbounded_types
from dataplane.upstream.bodies import without_duplicates


class _Source(msgspec.Struct):
    type: str = ""
    data: str = ""


class _Part(msgspec.Struct):
    """A content block; search results have a text as source, server tools one object as content."""

    type: str = ""
    text: str | None = None
    source: str | _Source | None = None
    content: "str | list[_Part] | _Part | None" = None


class _Message(msgspec.Struct):
    content: str | list[_Part]


class _Request(msgspec.Struct):
    model: str
    messages: list[_Message]
    max_tokens: int
    system: str | list[_Part] | UnsetType | None = UNSET
    stream: bool | UnsetType | None = UNSET
    tools: list[msgspec.Raw] | UnsetType | None = UNSET
    mcp_servers: list[msgspec.Raw] | UnsetType | None = UNSET
    context_management: msgspec.Raw | UnsetType = UNSET


_REQUEST: Final = msgspec.json.Decoder(_Request)
_EDITS: Final = msgspec.json.Decoder(list[msgspec.Raw] | None)
_READ_FIELDS: Final = (
    "model",
    "messages",
    "max_tokens",
    "system",
    "stream",
    "tools",
    "mcp_servers",
    "context_management",
)
_ALWAYS_GIVEN: Final = frozenset({"model", "messages", "max_tokens"})
_OPTIONAL_FIELDS: Final = _READ_FIELDS[3:]
# Tools that the caller runs (docs.anthropic.com/en/docs/agents-and-tools/tool-use), beside those that
# are named `custom` or have no type: what Anthropic's own fetch is input that nobody can foresee.
_OWN_TOOL: Final = re.compile(r"custom|(bash|text_editor|computer|memory)_[0-9]+")
# These only leave parts of the prompt out; others, such as `compact_`, have the model read it once
# more, which `max_tokens` does not bound (docs.anthropic.com/en/docs/build-with-claude/context-editing).
_BOUNDED_EDITS: Final = "clear_"
_PASSED_HEADERS: Final = ("anthropic-version", "anthropic-beta")
_MAX_HEADER_LENGTH: Final = 1024
_BILLING_STATUS: Final = 402
_TYPES: Final = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    413: "request_too_large",
    415: "invalid_request_error",
    429: "rate_limit_error",
    504: "timeout_error",
}


def call_of(request_id: str, body: bytes, headers: Mapping[str, str], client_ip: str) -> Call:
    """Return the call that a body of `POST /v1/messages` asks for.

    Raises:
        Refusal: INVALID_REQUEST, naming the field.
    """
    request = decoded(_REQUEST, body)
    given = _ALWAYS_GIVEN.union(
        name for name in _OPTIONAL_FIELDS if getattr(request, name) is not UNSET
    )
    if has_duplicates(body, _READ_FIELDS, given):
        body = without_duplicates(body)
    media = _media_of(request)
    call = Call(
        request_id=request_id,
        dialect=Dialect.ANTHROPIC,
        endpoint="messages",
        model=request.model,
        body=body,
        is_stream=request.stream is True,
        wants_stream_usage=True,
        output_cap_tokens=checked_cap("max_tokens", request.max_tokens),
        choices=1,
        input_upper_tokens=media.upper_tokens(body, len(request.messages)),
        input_estimate_tokens=media.estimated_tokens(len(request.messages)),
        given_fields=given,
        client_request_id=client_request_id(headers),
        client_ip=client_ip,
        passed_headers=_passed(headers),
        timeout_seconds=timeout_seconds(headers),
        server_tools=_server_tools(request),
    )
    check_call(call)
    return call


def _server_tools(request: _Request) -> tuple[str, ...]:
    """Return what of the request the provider runs and bills by itself."""
    named = list(unbounded_types("tools", request.tools or (), _is_own_tool))
    if request.mcp_servers:
        named.append("mcp_servers")
    if _reads_again(request.context_management):
        named.append("context_management")
    return tuple(named)


def _is_own_tool(name: str | None) -> bool:
    return name is None or _OWN_TOOL.fullmatch(name) is not None


def _reads_again(management: msgspec.Raw | UnsetType) -> bool:
    """Return whether an edit of the context may take passes of its own, which are billed."""
    if management is UNSET or bytes(management) == b"null":
        return False
    fields = fields_of("context_management", management)
    param = "context_management.edits"
    edits = decoded(_EDITS, bytes(fields.get("edits", b"null")), param)
    return names_twice(management, fields, "edits") or bool(
        unbounded_types(param, edits or (), _is_bounded_edit)
    )


def _is_bounded_edit(name: str | None) -> bool:
    return name is not None and name.startswith(_BOUNDED_EDITS)


def refusal_status(reason: Reason, status: int) -> int:
    """Return the HTTP status in this dialect: a money cap is 402 here."""
    return _BILLING_STATUS if reason is Reason.INSUFFICIENT_QUOTA else status


def refusal_body(refusal: Refusal, status: int, request_id: str) -> bytes:
    """Return the error object as Anthropic's SDKs read it."""
    error: dict[str, object] = {
        "type": _error_type(refusal.reason, status),
        "message": refusal.message,
    }
    if refusal.details:
        error["details"] = dict(refusal.details)
    return msgspec.json.encode({"type": "error", "error": error, "request_id": request_id or None})


def error_event(refusal: Refusal, status: int, request_id: str) -> bytes:
    """Return the event that ends a stream which failed after its 200; no `message_stop` follows."""
    return b"event: error\ndata: " + refusal_body(refusal, status, request_id) + b"\n\n"


def _error_type(reason: Reason, status: int) -> str:
    if reason in (Reason.OVERLOADED, Reason.PROVIDER_QUOTA_EXHAUSTED):
        return "overloaded_error"
    return _TYPES.get(status, "api_error")


def _media_of(request: _Request) -> Media:
    media = Media()
    _add(media, None if request.system is UNSET else request.system)
    for message in request.messages:
        _add(media, message.content)
    return media


def _add(media: Media, content: str | list[_Part] | _Part | None) -> None:
    if content is None or isinstance(content, str):
        media.add_text(content)
        return
    for part in content if isinstance(content, list) else (content,):
        media.add_text(part.text)
        source = part.source
        payload = source.data if isinstance(source, _Source) and source.type == "base64" else ""
        if part.type == "image":
            media.add_image(payload)
        elif part.type == "document":
            media.add_document(payload)
        _add(media, part.content)


def _passed(headers: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    return tuple(
        (name, headers[name])
        for name in _PASSED_HEADERS
        if name in headers
        and len(headers[name]) <= _MAX_HEADER_LENGTH
        and is_visible(headers[name])
    )
