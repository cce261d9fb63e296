"""Lets pages of other origins call the gateway: cross-origin resource sharing (Fetch standard).

It stands in front of the whole application. An extension of Quart would not do: the calls that buy
tokens are answered ahead of Quart (`entry.py`), refusals and streams too, and a browser shows a
page nothing of an answer without these headers, not even its status.

    preflight   OPTIONS with `Origin` and `Access-Control-Request-Method`: 204 at once. It never
                carries credentials and is about what may be sent, so it comes before
                authentication and before routing.
    anything    goes on as it is; its answer gets the headers of its origin.
    else

What keeps a foreign page out is the browser, never this module: it only says who is invited.
https://fetch.spec.whatwg.org/#http-cors-protocol
"""

import re
from collections.abc import Awaitable, Iterable
from dataclasses import dataclass
from typing import Final

from dataplane.http.entry import AsgiApp
from dataplane.http.reading import Message, Receive, Scope, Send

ANY_ORIGIN: Final = "*"
_Pairs = tuple[tuple[bytes, bytes], ...]
_OWN_PREFIX: Final = b"access-control-"
# Ten minutes: a page asks about each path once in a while only, a change of the setting soon counts.
_MAX_AGE_SECONDS: Final = 600
_METHODS: Final = b"GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"

# What a page may read of an answer beside the body: everything that we tell a caller in headers.
EXPOSED_HEADERS: Final = (
    *("x-request-id", "request-id", "x-client-request-id"),
    *(
        f"x-tollkeeper-{name}"
        for name in (
            *("cost-usd", "latency-ms", "provider", "model", "attempts", "cache"),
            *("config-revision", "ignored", "limits", "error"),
        )
    ),
    *("ratelimit", "ratelimit-policy", "retry-after", "x-should-retry", "allow"),
    *(
        f"x-ratelimit-{figure}-{unit}"
        for unit in ("requests", "tokens", "device", "ip")
        for figure in ("limit", "remaining", "reset")
    ),
    *(
        f"anthropic-ratelimit-{unit}-{figure}"
        for unit in ("requests", "tokens", "input-tokens", "output-tokens")
        for figure in ("limit", "remaining", "reset")
    ),
)
# What a page is told that it may send where it does not ask in a form that can be repeated.
ALLOWED_HEADERS: Final = (
    *("authorization", "x-api-key", "x-goog-api-key", "x-iam-key", "x-iam-org"),
    *("x-device-id", "x-session-token", "x-device-platform", "x-device-version"),
    *("content-type", "accept", "idempotency-key", "x-request-id"),
    *("x-tollkeeper-cache", "x-tollkeeper-tags", "x-tollkeeper-timeout", "x-tollkeeper-cost"),
    *("anthropic-version", "anthropic-beta", "anthropic-dangerous-direct-browser-access"),
    *("openai-organization", "openai-project", "openai-beta"),
)
_EXPOSED: Final = ", ".join(EXPOSED_HEADERS).encode()
_ALLOWED: Final = ", ".join(ALLOWED_HEADERS).encode()
# SDKs ask for some twenty names; whoever asks for more gets our own list.
_MAX_ASKED_BYTES: Final = 2_048
_MAX_ASKED_NAMES: Final = 64
# A field name (RFC 9110, section 5.1): nothing that could end a header and begin another.
_TOKEN: Final = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")


@dataclass(frozen=True, slots=True)
class _Grant:
    """What answers to one origin carry; `preflight` is None where it is not allowed."""

    answer: _Pairs
    preflight: _Pairs | None


_VARY: Final = (b"vary", b"Origin")
_VARY_PREFLIGHT: Final = (b"vary", b"Origin, Access-Control-Request-Headers")
_FOREIGN: Final = _Grant((_VARY,), None)


class Cors:
    """An ASGI application that invites pages of some origins to the one behind it.

    Args:
        app: What answers everything but preflights.
        origins: Each as a browser sends it (`https://app.example.com`, `tauri://localhost`), or
            `*` alone for all, which are then invited without cookies and other credentials that a
            browser adds by itself. API keys in headers work either way.
    """

    def __init__(self, app: AsgiApp, origins: Iterable[str]) -> None:
        allowed = tuple(origins)
        self._app = app
        self._grants = {each.encode("ascii"): _granted(each) for each in allowed}
        # For every other origin, and none: an answer to any origin says so always, so that it may
        # be cached for all; other answers depend on the origin and say that.
        self._other = self._grants.get(ANY_ORIGIN.encode(), _FOREIGN)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI scope."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        origin = _value(scope, b"origin")
        grant = self._other if origin is None else self._grants.get(origin, self._other)
        if (
            scope["method"] == "OPTIONS"
            and origin is not None
            and _value(scope, b"access-control-request-method") is not None
        ):
            await _answer_preflight(grant, scope, send)
            return

        # No coroutine of its own: it would cost each event of a stream one more.
        def send_with_grant(message: Message) -> Awaitable[None]:
            if message["type"] == "http.response.start":
                message = {**message, "headers": _with_grant(message.get("headers", ()), grant)}
            return send(message)

        await self._app(scope, receive, send_with_grant)


def _granted(origin: str) -> _Grant:
    allow_origin = (b"access-control-allow-origin", origin.encode("ascii"))
    expose = (b"access-control-expose-headers", _EXPOSED)
    preflight = (
        (b"access-control-allow-methods", _METHODS),
        (b"access-control-max-age", b"%d" % _MAX_AGE_SECONDS),
    )
    if origin == ANY_ORIGIN:
        vary = (b"vary", b"Access-Control-Request-Headers")
        return _Grant((allow_origin, expose), (allow_origin, *preflight, vary))
    with_credentials = (allow_origin, (b"access-control-allow-credentials", b"true"))
    return _Grant(
        (*with_credentials, expose, _VARY), (*with_credentials, *preflight, _VARY_PREFLIGHT)
    )


def _with_grant(headers: Iterable[tuple[bytes, bytes]], grant: _Grant) -> list[tuple[bytes, bytes]]:
    """Return headers with ours in place of an upstream's: browsers refuse what stands twice."""
    kept = [each for each in headers if not each[0].startswith(_OWN_PREFIX)]
    kept += grant.answer
    return kept


async def _answer_preflight(grant: _Grant, scope: Scope, send: Send) -> None:
    """Say what may be sent.

    A foreign origin gets the same 204 with none of it: the browser stops at the missing headers,
    whatever the status, and a 403 would look like an answer to the call that was never made.
    """
    headers = [_VARY_PREFLIGHT]
    if grant.preflight is not None:
        asked = _value(scope, b"access-control-request-headers")
        headers = [(b"access-control-allow-headers", _allowed_headers(asked)), *grant.preflight]
    await send({"type": "http.response.start", "status": 204, "headers": headers})
    await send({"type": "http.response.body", "body": b"", "more_body": False})


def _allowed_headers(asked: bytes | None) -> bytes:
    """Return the asked names if they are names, because SDKs send many of their own."""
    if asked is None or len(asked) > _MAX_ASKED_BYTES:
        return _ALLOWED
    names = [name.strip(b" \t") for name in asked.split(b",")]
    if len(names) > _MAX_ASKED_NAMES or not all(_TOKEN.fullmatch(name) for name in names):
        return _ALLOWED
    return b", ".join(names)


def _value(scope: Scope, name: bytes) -> bytes | None:
    for each, value in scope["headers"]:
        if each == name:
            return bytes(value)
    return None
