"""One data plane without a control plane: a snapshot made by hand, everything else real."""

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import cast

import httpx
import pytest
import pytest_asyncio

from dataplane.admitting import Admitting
from dataplane.bills import BillBook
from dataplane.control.enrollment import Enrollment
from dataplane.control.sightings import Sightings
from dataplane.control.user_usage import UserUsageClient
from dataplane.domain.calls import Dialect, UsageEvent
from dataplane.domain.client_addresses import ClientAddresses
from dataplane.domain.credentials import check_of
from dataplane.domain.limiting import LayerPlan, SubjectKind
from dataplane.domain.prices import Price, PriceBook
from dataplane.domain.principals import (
    ApiKey,
    LimitEntry,
    Organization,
    Principal,
    Service,
    SubjectLimits,
    User,
)
from dataplane.domain.providers import Provider, Router, Rule
from dataplane.domain.refusals import Reason, Refusal
from dataplane.domain.snapshot import Position, Snapshot
from dataplane.embedded_redis import RunningRedis
from dataplane.http.device_desk import DeviceDesk
from dataplane.http.entry import AsgiApp, Entry
from dataplane.http.errors import status_of
from dataplane.http.front import Front
from dataplane.http.health import Health
from dataplane.http.quart_app import quart_app
from dataplane.http.usage import OwnNumbers
from dataplane.limits.desk import open_counters
from dataplane.limits.guards import Guards
from dataplane.limits.limiter import Limiter
from dataplane.mock.server import MockServer
from dataplane.mock.server import serve as serve_mock
from dataplane.pipeline import Pipeline
from dataplane.serving import listen, serve
from dataplane.upstream.addresses import AllowedAddresses
from dataplane.upstream.attempts import Upstreams
from dataplane.upstream.transport import AiohttpTransport
from tests.pipeline.scripted import ScriptedProvider

Condition = Callable[[], bool]
NODE_TOKEN = "node-token-of-these-tests-0123456789"
LOOPBACK = ("127.0.0.0/8", "::1/128")
_HEAD = "tk_live_abcdefghijkl_" + "S" * 43
KEY = _HEAD + check_of(_HEAD)


class Records:
    """What the spool would have been told."""

    def __init__(self) -> None:
        self.opens: list[UsageEvent] = []
        self.closes: list[UsageEvent] = []
        self.is_full = False

    def record_open(self, event: UsageEvent) -> None:
        self.opens.append(event)

    def record_close(self, event: UsageEvent) -> None:
        self.closes.append(event)

    def flush(self) -> None:
        pass


@dataclass
class Configuration:
    """The snapshot in force; tests replace it."""

    snapshot: Snapshot | None = None

    def get(self) -> Snapshot:
        if self.snapshot is None:
            raise Refusal(Reason.CONFIGURATION_UNAVAILABLE, "None yet.", retry_after_seconds=5)
        return self.snapshot


def snapshot_of(mock_url: str, **limits: tuple[LimitEntry, ...]) -> Snapshot:
    """Return a configuration with one key on the mock; `limits` by whom they count: `user`, `key`,
    `organization`, `service`, `endpoint` (chat) and `model` (mock-echo)."""
    organization = Organization("o1", "acme")
    user = User("u1", "acme/alice", organization, tier="free")
    caller = Principal(
        SubjectKind.KEY, "abcdefghijkl", "acme/alice/laptop", user, "r1", tier=user.tier
    )
    provider = Provider(
        "p1",
        "mock",
        "mock",
        {Dialect.OPENAI: f"{mock_url}/v1", Dialect.ANTHROPIC: mock_url},
    )
    rule = Rule("rule1", 1, provider, ("*",), aliases={"fast": "mock-echo"})
    price = Price("price1", 3, "mock", "*", 0, 10**9, 2 * 10**9, 10**9, 10**9, 2 * 10**9)
    names = {
        "user": "user:u1",
        "key": "key:abcdefghijkl",
        "organization": "organization:o1",
        "service": "global",
        "endpoint": "endpoint:chat",
        "model": "model:mock-echo",
    }
    return Snapshot(
        position=Position("epoch", 7, bytes(32)),
        service=Service(upgrade_url="https://example.com/upgrade"),
        keys_by_sha256={hashlib.sha256(KEY.encode()).digest(): ApiKey("abcdefghijkl", caller)},
        routers={"r1": Router("r1", "default", (rule,))},
        prices=PriceBook([price]),
        limits={names[name]: SubjectLimits(entries) for name, entries in limits.items()},
        limited_endpoints=frozenset({"chat"} if "endpoint" in limits else ()),
        limited_models=frozenset({"mock-echo"} if "model" in limits else ()),
        applied_at_ms=int(time.time() * 1000),
    )


@dataclass
class DataPlane:
    """A proxy on a port of its own, and everything that a test may look at."""

    base_url: str
    pipeline: Pipeline
    limiter: Limiter
    records: Records
    configuration: Configuration
    mock: MockServer
    stop: asyncio.Event
    server: asyncio.Task[None]
    front: Front
    client: httpx.AsyncClient = field(repr=False)

    def use(self, snapshot: Snapshot) -> None:
        self.configuration.snapshot = snapshot

    def limited(self, **limits: tuple[LimitEntry, ...]) -> None:
        self.use(snapshot_of(self.mock.url, **limits))

    def calls(self, url: str, **limits: tuple[LimitEntry, ...]) -> None:
        """Send calls to another provider than the mock."""
        self.use(snapshot_of(url, **limits))

    async def held_nanousd(self) -> int:
        """Return what is reserved by requests in flight, over all layers of the key."""
        return sum(each.held for each in await self.limiter.balances(self.plan))

    async def counted(self, name: str) -> int:
        """Return what one layer has counted."""
        balances = await self.limiter.balances(self.plan)
        return next(each.settled for each in balances if each.layer.name == name)

    @property
    def plan(self) -> LayerPlan:
        snapshot = self.configuration.get()
        key = next(iter(snapshot.keys_by_sha256.values()))
        now_ms = self.pipeline.clock_ms()
        return snapshot.plan_for(key.principal, "127.0.0.1", "chat", "mock-echo", now_ms)

    async def until(self, condition: Condition, deadline_seconds: float = 3.0) -> None:
        async with asyncio.timeout(deadline_seconds):
            while not condition():
                await asyncio.sleep(0.005)

    async def chat(
        self, model: str = "mock-echo", text: str = "hello", **fields: object
    ) -> httpx.Response:
        body = {"model": model, "messages": [{"role": "user", "content": text}], **fields}
        return await self.client.post("/v1/chat/completions", json=body)

    async def message(
        self, model: str = "mock-echo", text: str = "hello", **fields: object
    ) -> httpx.Response:
        body = {
            "model": model,
            "max_tokens": 100,
            "messages": [{"role": "user", "content": text}],
            **fields,
        }
        return await self.client.post("/v1/messages", json=body)


@pytest_asyncio.fixture
async def provider() -> AsyncIterator[ScriptedProvider]:
    """A provider that answers what the test says and keeps what it was sent."""
    async with ScriptedProvider() as scripted:
        yield scripted


@pytest.fixture(params=["entry", "quart"])
def way_in(request: pytest.FixtureRequest) -> str:
    """Which way requests come in: ahead of Quart, or through it."""
    return str(request.param)


@pytest.fixture
def drain_seconds() -> float:
    """How long a stop waits for streams in flight."""
    return 5.0


@pytest.fixture
def trusts_loopback() -> bool:
    """Whether the tests' own connections count as those of a trusted proxy."""
    return False


@pytest.fixture
def control_plane_address() -> str:
    """Where registrations and sums are asked for; nobody is there unless a test has a scripted one."""
    return "127.0.0.1:1"


@pytest_asyncio.fixture
async def data_plane(
    redis_server: RunningRedis,
    way_in: str,
    drain_seconds: float,
    trusts_loopback: bool,
    control_plane_address: str,
    request: pytest.FixtureRequest,
) -> AsyncIterator[DataPlane]:
    mock = await serve_mock("127.0.0.1", 0)
    hash_tag = f"{{{abs(hash(request.node.nodeid)):x}}}"
    await open_counters(redis_server.url, hash_tag)
    limiter = await Limiter.connect(redis_server.url, hash_tag=hash_tag)
    records, configuration = Records(), Configuration(snapshot_of(mock.url))

    def clock_ms() -> int:
        return time.time_ns() // 1_000_000

    upstreams = Upstreams(AiohttpTransport(AllowedAddresses(LOOPBACK)))
    bills = BillBook(records, "node-1", clock_ms, status_of)
    admitting = Admitting(limiter, bills, clock_ms)
    pipeline = Pipeline(configuration, admitting, upstreams, bills, clock_ms)
    guards = Guards(redis_server.url, lambda: limiter.is_available, hash_tag=hash_tag)
    enrollment = Enrollment([control_plane_address], NODE_TOKEN, "node-1")
    user_usages = UserUsageClient([control_plane_address], NODE_TOKEN)
    front = Front(
        pipeline,
        ClientAddresses(LOOPBACK if trusts_loopback else ()),
        Health(pipeline, "0.1.0", lambda: limiter.state.value, lambda: 0),
        DeviceDesk(pipeline, guards, enrollment, Sightings()),
        OwnNumbers(pipeline, limiter, user_usages),
    )
    # Quart names the same scope and messages by classes of its server.
    quart = cast("AsgiApp", quart_app(front))
    app = Entry(front, quart) if way_in == "entry" else quart
    sock, stop = listen("127.0.0.1", 0), asyncio.Event()
    base_url = f"http://127.0.0.1:{sock.getsockname()[1]}"
    server = asyncio.create_task(serve(app, sock, stop, drain_seconds))
    headers = {"authorization": f"Bearer {KEY}"}
    async with httpx.AsyncClient(
        # Without TLS no certificates need to be loaded, which takes longer than most tests.
        base_url=base_url,
        headers=headers,
        trust_env=False,
        timeout=10,
        verify=False,  # noqa: S501
    ) as client:
        yield DataPlane(
            base_url, pipeline, limiter, records, configuration, mock, stop, server, front, client
        )
    stop.set()
    await server
    await enrollment.aclose()
    await user_usages.aclose()
    await guards.aclose()
    await upstreams.aclose()
    await limiter.aclose(1.0)
    await mock.close()
