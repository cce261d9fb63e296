"""The port for metrics, of both planes: it answers scrapes, and nothing that comes in harms it."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import httpx
import pytest
import structlog

from controlplane import metrics_listener as of_control_plane
from dataplane import metrics_listener as of_data_plane

Serve = Callable[..., AbstractAsyncContextManager[int]]
PLANES = {"control plane": of_control_plane, "data plane": of_data_plane}
DEADLINE_S = 10.0


@pytest.fixture(params=PLANES)
def make(request: pytest.FixtureRequest) -> Serve:
    made: Serve = PLANES[request.param].metrics_served
    return made


def exposed() -> tuple[str, bytes]:
    return "text/plain; version=0.0.4", b"up 1\n"


@asynccontextmanager
async def serving(
    make: Serve, expose: Callable[[], tuple[str, bytes]] = exposed
) -> AsyncIterator[int]:
    async with make("127.0.0.1", 0, expose) as port:
        yield port


@asynccontextmanager
async def client_of(port: int) -> AsyncIterator[httpx.AsyncClient]:
    url = f"http://127.0.0.1:{port}"
    async with httpx.AsyncClient(
        base_url=url,
        trust_env=False,
        timeout=DEADLINE_S,
        verify=False,  # noqa: S501 - no TLS here
    ) as client:
        yield client


async def raw(port: int, data: bytes) -> bytes:
    """Send bytes as they are and return all that comes back."""
    async with asyncio.timeout(DEADLINE_S):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(data)
        if not data.endswith(b"\r\n\r\n"):
            writer.write_eof()
        answer = b""
        with contextlib.suppress(ConnectionError):
            answer = await reader.read()
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
    return answer


async def test_a_scrape_gets_the_metrics_on_a_free_port(make: Serve) -> None:
    async with serving(make) as port, client_of(port) as client:
        for path in ("/metrics", "/metrics?name=up"):
            answer = await client.get(path)
            assert (answer.status_code, answer.text) == (200, "up 1\n")
            assert answer.headers["content-type"] == "text/plain; version=0.0.4"
        head = await client.head("/metrics")
        assert (head.status_code, head.content, head.headers["content-length"]) == (200, b"", "5")
        assert (await client.get("/health")).text == "healthy\n"


@pytest.mark.parametrize("path", ["/", "/metrics/", "/admin", "/health/ready", "/../metrics"])
async def test_there_is_nothing_else_there(make: Serve, path: str) -> None:
    async with serving(make) as port:
        answer = await raw(port, f"GET {path} HTTP/1.1\r\nhost: x\r\n\r\n".encode())
    assert answer.startswith(b"HTTP/1.1 404 ")


async def test_only_reading_is_allowed(make: Serve) -> None:
    async with serving(make) as port, client_of(port) as client:
        answer = await client.post("/metrics", content=b"x" * 100_000)
        assert (answer.status_code, answer.headers["allow"]) == (405, "GET, HEAD")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET /metrics\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET /metrics HTTP/1.1\r\nx: " + b"a" * 20_000 + b"\r\n\r\n",
        b"\xff\xfe\xfd\r\n\r\n",
    ],
    ids=["nothing", "empty lines", "TLS", "no version", "HTTP/2", "a long head", "bytes"],
)
async def test_nonsense_is_refused_and_the_next_scrape_is_answered(
    make: Serve, data: bytes
) -> None:
    async with serving(make) as port:
        answer = await raw(port, data)
        assert answer == b"" or answer.startswith(b"HTTP/1.1 400 ")
        assert (await raw(port, b"GET /metrics HTTP/1.0\r\n\r\n")).endswith(b"up 1\n")


async def test_who_says_nothing_is_cut_off(make: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(of_data_plane, "DEADLINE_SECONDS", 0.05)
    monkeypatch.setattr(of_control_plane, "DEADLINE_S", 0.05)
    async with serving(make) as port, asyncio.timeout(DEADLINE_S):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        with contextlib.suppress(ConnectionError):
            assert await reader.read() == b""
        writer.close()


async def test_more_connections_than_anybody_needs_are_refused(
    make: Serve,
) -> None:
    async with serving(make) as port, asyncio.timeout(DEADLINE_S):
        many = of_data_plane.MAX_CONNECTIONS
        idle = [await asyncio.open_connection("127.0.0.1", port) for _ in range(many)]
        refused = b"?"
        while refused:
            refused = await raw(port, b"GET /metrics HTTP/1.1\r\n\r\n")
        for _, writer in idle:
            writer.close()
        while not refused:
            refused = await raw(port, b"GET /metrics HTTP/1.1\r\n\r\n")
        assert refused.endswith(b"up 1\n")


async def test_a_fault_of_a_metric_ends_the_scrape_and_not_the_port(
    make: Serve,
) -> None:
    faults = [ValueError("a secret")]

    def expose() -> tuple[str, bytes]:
        if faults:
            raise faults.pop()
        return exposed()

    async with serving(make, expose) as port:
        with structlog.testing.capture_logs() as logs:
            assert await raw(port, b"GET /metrics HTTP/1.1\r\n\r\n") == b""
        assert [each["log_level"] for each in logs] == ["error"]
        assert (await raw(port, b"GET /metrics HTTP/1.1\r\n\r\n")).endswith(b"up 1\n")


async def test_a_stop_leaves_nothing_open(make: Serve) -> None:
    async with asyncio.timeout(DEADLINE_S):
        async with serving(make) as port:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            # It is served, and waits for a request.
            assert (await raw(port, b"GET /health HTTP/1.1\r\n\r\n")).endswith(b"healthy\n")
            began_s = time.monotonic()
        assert time.monotonic() - began_s < DEADLINE_S / 2
        with contextlib.suppress(ConnectionError):
            assert await reader.read() == b""
        writer.close()
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", port)


async def test_a_port_that_is_taken_is_said_at_the_start(make: Serve) -> None:
    async with serving(make) as port:
        with pytest.raises(OSError, match="in use"):
            async with make("127.0.0.1", port, exposed):
                pass
        assert (await raw(port, b"GET /health HTTP/1.1\r\n\r\n")).endswith(b"healthy\n")
