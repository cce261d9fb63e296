"""OpenAI's chat completions: request bodies to calls, refusals to bodies."""

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
    timeout_seconds,
)
from dataplane.http.codecs.server_tools import unbounded_types
from dataplane.upstream.bodies import without_duplicates


class _ImageUrl(msgspec.Struct):
    url: str = ""


class _Data(msgspec.Struct):
    data: str = ""
    file_data: str = ""


class _Part(msgspec.Struct):
    type: str = ""
    text: str | None = None
    image_url: _ImageUrl | None = None
    input_audio: _Data | None = None
    file: _Data | None = None


class _Message(msgspec.Struct):
    content: str | list[_Part] | None = None


class _StreamOptions(msgspec.Struct):
    include_usage: bool | None = None


class _Request(msgspec.Struct):
    model: str
    messages: list[_Message]
    stream: bool | UnsetType | None = UNSET
    stream_options: msgspec.Raw | UnsetType = UNSET
    max_tokens: int | UnsetType | None = UNSET
    max_completion_tokens: int | UnsetType | None = UNSET
    n: int | UnsetType | None = UNSET
    tools: list[msgspec.Raw] | UnsetType | None = UNSET
    web_search_options: msgspec.Raw | UnsetType = UNSET


_REQUEST: Final = msgspec.json.Decoder(_Request)
_OPTIONS: Final = msgspec.json.Decoder(_StreamOptions | None)
_READ_FIELDS: Final = (
    "model",
    "messages",
    "stream",
    "stream_options",
    "max_tokens",
    "max_completion_tokens",
    "n",
    "tools",
    "web_search_options",
)
_ALWAYS_GIVEN: Final = frozenset({"model", "messages"})
_OPTIONAL_FIELDS: Final = _READ_FIELDS[2:]
# Tools that the caller runs (platform.openai.com/docs/api-reference/chat/create).
_OWN_TOOLS: Final = frozenset({"function", "custom"})
_TYPES: Final = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
}
_SERVER_ERROR: Final = 500


def call_of(request_id: str, body: bytes, headers: Mapping[str, str], client_ip: str) -> Call:
    """Return the call that a body of `POST /v1/chat/completions` asks for.

    Raises:
        Refusal: INVALID_REQUEST, naming the field.
    """
    request = decoded(_REQUEST, body)
    given = _ALWAYS_GIVEN.union(
        name for name in _OPTIONAL_FIELDS if getattr(request, name) is not UNSET
    )
    if has_duplicates(body, _READ_FIELDS, given):
        body = without_duplicates(body)
    media = _media_of(request.messages)
    options = bytes(request.stream_options) if request.stream_options is not UNSET else None
    call = Call(
        request_id=request_id,
        dialect=Dialect.OPENAI,
        endpoint="chat",
        model=request.model,
        body=body,
        is_stream=request.stream is True,
        wants_stream_usage=_wants_usage(options),
        output_cap_tokens=_output_cap(request),
        choices=request.n if isinstance(request.n, int) else 1,
        input_upper_tokens=media.upper_tokens(body, len(request.messages)),
        input_estimate_tokens=media.estimated_tokens(len(request.messages)),
        given_fields=given,
        stream_options=options,
        client_request_id=client_request_id(headers),
        client_ip=client_ip,
        timeout_seconds=timeout_seconds(headers),
        server_tools=_server_tools(request),
    )
    check_call(call)
    return call


def _server_tools(request: _Request) -> tuple[str, ...]:
    """Return what of the request the provider runs and bills by itself."""
    tools = unbounded_types("tools", request.tools or (), _OWN_TOOLS.__contains__)
    options = request.web_search_options
    searches = options is not UNSET and bytes(options) != b"null"
    return (*tools, "web_search_options") if searches else tools


def refusal_status(reason: Reason, status: int) -> int:
    """Return the HTTP status in this dialect: the table's own."""
    return status


def refusal_body(refusal: Refusal, status: int, request_id: str) -> bytes:
    """Return the error object as OpenAI's SDKs read it."""
    error: dict[str, object] = {
        "message": refusal.message,
        "type": _error_type(refusal.reason, status),
        "param": refusal.param,
        "code": refusal.reason.value,
    }
    if refusal.details:
        error["details"] = dict(refusal.details)
    return msgspec.json.encode({"error": error})


def error_event(refusal: Refusal, status: int, request_id: str) -> bytes:
    """Return the event that ends a stream which failed after its 200; no `[DONE]` follows."""
    return b"data: " + refusal_body(refusal, status, request_id) + b"\n\n"


def _error_type(reason: Reason, status: int) -> str:
    if reason is Reason.INSUFFICIENT_QUOTA:
        return "insufficient_quota"
    if status >= _SERVER_ERROR:
        return "server_error"
    return _TYPES.get(status, "invalid_request_error")


def _media_of(messages: list[_Message]) -> Media:
    media = Media()
    for message in messages:
        if not isinstance(message.content, list):
            media.add_text(message.content)
            continue
        for part in message.content:
            media.add_text(part.text)
            if part.image_url is not None:
                is_inline = part.image_url.url.startswith("data:")
                media.add_image(part.image_url.url if is_inline else "")
            if part.file is not None:
                media.add_document(part.file.file_data)
            if part.input_audio is not None:
                media.add_document(part.input_audio.data)
    return media


def _wants_usage(options: bytes | None) -> bool:
    parsed = decoded(_OPTIONS, options, "stream_options") if options is not None else None
    return parsed is not None and parsed.include_usage is True


def _output_cap(request: _Request) -> int | None:
    caps = [
        checked_cap(name, cap)
        for name, cap in (
            ("max_tokens", request.max_tokens),
            ("max_completion_tokens", request.max_completion_tokens),
        )
        if isinstance(cap, int)
    ]
    return max(caps, default=None)
