"""Pages of other origins, as browsers send their calls."""

import asyncio
import socket

import pytest

from dataplane.domain.principals import LimitEntry
from dataplane.http.cors import ALLOWED_HEADERS, EXPOSED_HEADERS, Cors
from dataplane.http.entry import AsgiApp
from dataplane.http.reading import Message, Receive, Scope, Send
from dataplane.serving import serve
from tests.pipeline.conftest import KEY, DataPlane
from tests.pipeline.wire import WireAnswer, check_refusal, head, raw

APP = "https://app.example.com"
ORIGINS = (APP, "http://localhost:5173", "tauri://localhost", "capacitor://localhost")
FOREIGN = (
    "https://evil.example",
    "https://app.example.com.evil.example",
    "https://evil-app.example.com",
    "http://app.example.com",
    "https://app.example.com:8443",
    "https://app.example.com/",
    "https://APP.example.com",
    "https://app.example.com, https://evil.example",
    "tauri://localhost.evil.example",
    "localhost",
    "null",
    "*",
    "",
)
PATHS = ("/v1/chat/completions", "/v1/messages", "/v1/models", "/health", "/no/such/path")
LIMITS = (LimitEntry("requests", "minute", 1), LimitEntry("tokens", "day", 100_000))
# What scripts may read anyway, and what is the transport's.
READABLE_ANYWAY = frozenset({"cache-control", "content-length", "content-type"})
OF_THE_TRANSPORT = frozenset(
    {"connection", "date", "transfer-encoding", "vary", "x-accel-buffering"}
)


@pytest.fixture
def origins() -> tuple[str, ...]:
    """Which origins the gateway invites."""
    return ORIGINS


@pytest.fixture(autouse=True)
def invites(monkeypatch: pytest.MonkeyPatch, origins: tuple[str, ...]) -> None:
    """Stand in front of whatever the data plane serves, either way in."""

    async def serve_invited(
        app: AsgiApp, sock: socket.socket, stop: asyncio.Event, drain_seconds: float
    ) -> None:
        await serve(Cors(app, origins), sock, stop, drain_seconds)

    monkeypatch.setattr("tests.pipeline.conftest.serve", serve_invited)


def grants(answer: WireAnswer) -> dict[str, str]:
    return {
        name.removeprefix("access-control-"): value
        for name, value in answer.headers.items()
        if name.startswith("access-control-")
    }


async def ask(
    data_plane: DataPlane,
    method: str,
    path: str,
    *lines: bytes,
    key: str | None = KEY,
    body: bytes = b"",
) -> WireAnswer:
    length = b"content-length: %d" % len(body)
    return await raw(data_plane, head(path, *lines, length, method=method, key=key) + body)


async def preflight(
    data_plane: DataPlane,
    path: str,
    origin: str,
    *lines: bytes,
    asked: str | None = "authorization",
) -> WireAnswer:
    own = [f"origin: {origin}".encode(), b"access-control-request-method: POST"]
    if asked is not None:
        own.append(f"access-control-request-headers: {asked}".encode())
    return await ask(data_plane, "OPTIONS", path, *own, *lines, key=None)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("origin", ORIGINS)
async def test_a_preflight_is_answered_before_credentials_and_paths_are_looked_at(
    data_plane: DataPlane, path: str, origin: str
) -> None:
    answer = await preflight(data_plane, path, origin, asked="authorization,content-type")

    assert (answer.status, answer.body) == (204, b"")
    assert grants(answer) == {
        "allow-origin": origin,
        "allow-credentials": "true",
        "allow-methods": "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS",
        "allow-headers": "authorization, content-type",
        "max-age": "600",
    }
    assert answer.headers["vary"].startswith("Origin")
    assert not {"content-length", "x-tollkeeper-error", "x-request-id"} & set(answer.headers)


async def test_a_preflight_needs_no_configuration_and_buys_nothing(data_plane: DataPlane) -> None:
    data_plane.configuration.snapshot = None
    data_plane.pipeline.is_draining = True

    answer = await preflight(data_plane, "/v1/chat/completions", APP)

    assert (answer.status, grants(answer)["allow-origin"]) == (204, APP)
    assert data_plane.records.opens == []


@pytest.mark.parametrize("origin", FOREIGN)
async def test_a_preflight_of_a_foreign_page_is_promised_nothing(
    data_plane: DataPlane, origin: str
) -> None:
    answer = await preflight(data_plane, "/v1/chat/completions", origin)

    assert (answer.status, grants(answer)) == (204, {})
    assert answer.headers["vary"].startswith("Origin")


async def test_options_that_are_no_preflight_are_routed_as_any_call(data_plane: DataPlane) -> None:
    without_origin = await ask(
        data_plane, "OPTIONS", "/no/such/path", b"access-control-request-method: POST"
    )
    without_method = await ask(data_plane, "OPTIONS", "/no/such/path", b"origin: " + APP.encode())

    check_refusal(without_origin, 404, "not_found", "openai")
    check_refusal(without_method, 404, "not_found", "openai")
    assert grants(without_origin) == {}
    assert set(grants(without_method)) == {"allow-origin", "allow-credentials", "expose-headers"}


async def test_a_call_by_another_method_is_never_a_preflight(data_plane: DataPlane) -> None:
    lines = (f"origin: {APP}".encode(), b"access-control-request-method: POST")

    answer = await ask(data_plane, "GET", "/v1/models", *lines, key=None)

    check_refusal(answer, 401, "missing_credentials", "openai")


@pytest.mark.parametrize(
    ("asked", "allowed"),
    [
        ("authorization", "authorization"),
        ("Content-Type,X-Stainless-Lang , x-Own", "Content-Type, X-Stainless-Lang, x-Own"),
        ("!#$%&'*+-.^_`|~09", "!#$%&'*+-.^_`|~09"),
        (",".join(["x-own"] * 64), ", ".join(["x-own"] * 64)),
        ("x" * 2_048, "x" * 2_048),
    ],
)
async def test_a_page_may_send_the_headers_it_asks_for(
    data_plane: DataPlane, asked: str, allowed: str
) -> None:
    answer = await preflight(data_plane, "/v1/messages", APP, asked=asked)

    assert grants(answer)["allow-headers"] == allowed


@pytest.mark.parametrize(
    "asked",
    [
        None,
        "",
        "authorization,",
        "authorization,,x-own",
        "x own",
        "x-own: 1",
        "x(own)",
        '"x-own"',
        "x\x7fown",
        ",".join(["x-own"] * 65),
        "x" * 2_049,
    ],
)
async def test_what_is_no_list_of_names_gets_our_own_list(
    data_plane: DataPlane, asked: str | None
) -> None:
    answer = await preflight(data_plane, "/v1/messages", APP, asked=asked)

    assert (answer.status, grants(answer)["allow-headers"]) == (204, ", ".join(ALLOWED_HEADERS))
    assert {"authorization", "x-api-key", "x-session-token"} <= set(ALLOWED_HEADERS)


@pytest.mark.parametrize("origin", ORIGINS)
async def test_a_page_of_ours_may_read_an_answer_and_its_headers(
    data_plane: DataPlane, origin: str
) -> None:
    data_plane.client.headers["origin"] = origin

    answer = await data_plane.chat()

    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == origin
    assert answer.headers["access-control-allow-credentials"] == "true"
    assert answer.headers["access-control-expose-headers"] == ", ".join(EXPOSED_HEADERS)
    assert answer.headers["vary"] == "Origin"


@pytest.mark.parametrize("origin", [*FOREIGN, None])
async def test_a_foreign_page_may_read_nothing_and_caches_are_told(
    data_plane: DataPlane, origin: str | None
) -> None:
    lines = [] if origin is None else [f"origin: {origin}".encode()]

    answer = await ask(data_plane, "GET", "/v1/models", *lines)

    assert (answer.status, answer.headers["vary"]) == (200, "Origin")
    assert grants(answer) == {}


async def test_a_stream_carries_the_headers_and_arrives_event_by_event(
    data_plane: DataPlane,
) -> None:
    messages = [{"role": "user", "content": "x"}]
    body = {"model": "mock-tokens-200-pace-20", "stream": True, "messages": messages}

    async with data_plane.client.stream(
        "POST", "/v1/chat/completions", json=body, headers={"origin": APP}
    ) as answer:
        assert answer.headers["access-control-allow-origin"] == APP
        assert answer.headers["content-type"].startswith("text/event-stream")
        async for chunk in answer.aiter_bytes():
            assert chunk.startswith(b"data: ")
            break
        assert data_plane.records.closes == []  # there is more to come
    await data_plane.until(lambda: len(data_plane.records.closes) == 1)


@pytest.mark.parametrize(
    ("status", "path", "key"),
    [
        (401, "/v1/chat/completions", None),
        (401, "/v1/messages", "tk_live_unknown"),
        (401, "/v1/models", None),
        (404, "/no/such/path", KEY),
        (405, "/v1/models", KEY),
        (400, "/v1/chat/completions", KEY),
    ],
)
async def test_a_page_of_ours_may_read_a_refusal(
    data_plane: DataPlane, status: int, path: str, key: str | None
) -> None:
    method = "GET" if path == "/v1/models" and status != 405 else "POST"

    answer = await ask(
        data_plane,
        method,
        path,
        b"origin: tauri://localhost",
        b"content-type: application/json",
        key=key,
        body=b"{",
    )

    assert answer.status == status
    assert grants(answer) == {
        "allow-origin": "tauri://localhost",
        "allow-credentials": "true",
        "expose-headers": ", ".join(EXPOSED_HEADERS),
    }
    assert "x-tollkeeper-error" in EXPOSED_HEADERS


async def test_a_body_that_is_too_large_is_refused_readably(data_plane: DataPlane) -> None:
    lines = (f"origin: {APP}".encode(), b"content-length: 99999999")

    answer = await raw(data_plane, head("/v1/chat/completions", *lines))

    check_refusal(answer, 413, "request_too_large", "openai")
    assert grants(answer)["allow-origin"] == APP


@pytest.mark.parametrize("dialect", ["openai", "anthropic"])
async def test_a_page_of_ours_may_read_limits_and_failures(
    data_plane: DataPlane, dialect: str
) -> None:
    data_plane.client.headers["origin"] = APP
    call = data_plane.chat if dialect == "openai" else data_plane.message
    failed = await call(model="mock-status-500")
    data_plane.limited(user=LIMITS)
    await call()
    denied = await call()
    data_plane.configuration.snapshot = None
    without = await call()

    assert failed.status_code >= 500
    assert (denied.status_code, without.status_code) == (429, 503)
    for answer in (failed, denied, without):
        assert answer.headers["access-control-allow-origin"] == APP
        assert "retry-after" in answer.headers["access-control-expose-headers"]


@pytest.mark.parametrize("dialect", ["openai", "anthropic"])
async def test_a_page_may_read_every_header_that_we_tell_a_caller_something_in(
    data_plane: DataPlane, dialect: str
) -> None:
    data_plane.limited(user=LIMITS)
    data_plane.client.headers.update({"origin": APP, "x-request-id": "mine"})
    call = data_plane.chat if dialect == "openai" else data_plane.message

    answers = [
        *(await call(model="no-such-model"), await call(stream=True), await call(max_tokens=1)),
        *(await data_plane.client.get("/v1/models"), await data_plane.client.post("/v1/models")),
    ]

    sent = {name for answer in answers for name in answer.headers}
    own = {name for name in sent if not name.startswith("access-control-")}
    assert own - READABLE_ANYWAY - OF_THE_TRANSPORT <= set(EXPOSED_HEADERS)
    assert {"ratelimit", "retry-after", "x-request-id", "x-client-request-id"} <= own


@pytest.mark.parametrize("origins", [("*",)])
@pytest.mark.parametrize("origin", [APP, "null", "tauri://localhost", None])
async def test_where_any_origin_is_invited_it_is_without_credentials_of_the_browser(
    data_plane: DataPlane, origin: str | None
) -> None:
    lines = [] if origin is None else [f"origin: {origin}".encode()]

    answer = await ask(data_plane, "GET", "/v1/models", *lines)

    assert answer.status == 200
    assert grants(answer) == {"allow-origin": "*", "expose-headers": ", ".join(EXPOSED_HEADERS)}
    assert "vary" not in answer.headers  # the same for all, so that caches may keep it


@pytest.mark.parametrize("origins", [("*",)])
async def test_where_any_origin_is_invited_a_preflight_still_names_what_may_be_sent(
    data_plane: DataPlane,
) -> None:
    answer = await preflight(data_plane, "/v1/messages", "https://any.example")

    # A wildcard of names would leave `authorization` out: it is repeated by name.
    assert grants(answer) == {
        "allow-origin": "*",
        "allow-methods": "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS",
        "allow-headers": "authorization",
        "max-age": "600",
    }


async def sent_by(application: AsgiApp, scope: Scope) -> list[Message]:
    """Return what `application` sends for one scope."""
    messages: list[Message] = []

    async def receive() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Message) -> None:
        messages.append(message)

    await application(scope, receive, send)
    return messages


@pytest.mark.parametrize("origin", [APP, "https://evil.example"])
async def test_what_an_upstream_says_about_origins_is_ours_to_say(origin: str) -> None:
    theirs = [
        (b"access-control-allow-origin", b"*"),
        (b"access-control-max-age", b"9"),
        (b"vary", b"Accept"),
        (b"x-own", b"1"),
    ]

    async def upstream(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": theirs})
        await send({"type": "http.response.body", "body": b"x"})

    scope = {"type": "http", "method": "GET", "headers": [(b"origin", origin.encode())]}
    start, body = await sent_by(Cors(upstream, ORIGINS), scope)

    origins = [value for name, value in start["headers"] if name == b"access-control-allow-origin"]
    assert origins == ([APP.encode()] if origin == APP else [])
    assert b"access-control-max-age" not in dict(start["headers"])
    assert [value for name, value in start["headers"] if name == b"vary"] == [b"Accept", b"Origin"]
    assert dict(start["headers"])[b"x-own"] == b"1"
    assert body == {"type": "http.response.body", "body": b"x"}
    assert len(theirs) == 4  # their message is not changed


@pytest.mark.parametrize("kind", ["websocket", "lifespan"])
async def test_what_is_no_http_goes_on_untouched(kind: str) -> None:
    seen: list[tuple[Scope, Receive, Send]] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append((scope, receive, send))
        await send({"type": "http.response.start", "headers": []})

    [message] = await sent_by(Cors(app, ORIGINS), {"type": kind})

    assert message == {"type": "http.response.start", "headers": []}
    assert seen[0][0] == {"type": kind}
