"""A control plane, a Redis, a mock provider and data planes, some of which will kill themselves."""

import asyncio
import base64
import itertools
import json
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Final, TypeVar

import aiohttp
import msgspec
import redis.asyncio
from tollkeeper.admin.v1 import (
    api_key_service_pb2,
    limit_service_pb2,
    operations_service_pb2,
    operations_service_pb2_grpc,
    price_service_pb2,
    provider_service_pb2,
    router_service_pb2,
    user_service_pb2,
)
from tollkeeper.common.v1 import limits_pb2, rates_pb2
from tollkeeper.config.v1 import resources_pb2

from dataplane import embedded_redis
from dataplane.domain.limiting import LayerKind
from dataplane.limits.counters import Keyspace, layer_name
from dataplane.maintenance.registry import Presence
from dataplane.mock.server import MockServer, serve
from tests.crashes.node import start
from tests.crashes.points import Point
from tests.distribution.process import Program, environment_of, program
from tests.e2e.waiting import eventually_async
from tests.rpc.admin_api import AdminApi

_START_S: Final = 40.0
_DEATH_S: Final = 10.0
_NUMBERS: Final = itertools.count(1)
_ORGANIZATION: Final = "acme"
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Customer:
    """A user who may have one request in flight, their key, and a provider that nobody else calls."""

    user: str
    user_id: str
    api_key: str
    provider: MockServer


@dataclass(slots=True)
class Node:
    """A data plane, as a process."""

    node_id: str
    data_dir: Path
    process: ForkServerProcess
    base_url: str = ""

    async def exit_code(self) -> int | None:
        """Wait until it is dead, and return how it died; None when it lives on."""
        await asyncio.to_thread(self.process.join, _DEATH_S)
        return self.process.exitcode

    @property
    def log(self) -> str:
        """What it said, and its predecessors."""
        return (self.data_dir / "log").read_text("utf-8", errors="replace")

    @property
    def corrections(self) -> list[str]:
        """The counters that it found to differ from the ledger, and set right."""
        return [line for line in self.log.splitlines() if '"counter_corrected"' in line]


@dataclass(slots=True)
class Stack:
    """Everything that data planes need, and those that run."""

    folder: Path
    control_plane: Program
    redis_url: str
    redis: "redis.asyncio.Redis"
    admin: AdminApi
    stack: AsyncExitStack
    keyspace: Keyspace = field(default_factory=Keyspace)

    async def new_customer(self, budget_nanousd: int, *, is_soft: bool = False) -> Customer:
        """Create a user with limits of every kind, and a key whose calls go to a provider of its own."""
        number = next(_NUMBERS)
        provider = await self.stack.enter_async_context(await serve())
        router = await self._route_to(provider.url, f"mock-{number}")
        name = f"{_ORGANIZATION}/user-{number}"
        pb, limit = limits_pb2, limits_pb2.Limit
        day, month = pb.LIMIT_WINDOW_DAY, pb.LIMIT_WINDOW_MONTH
        spend = limit(unit=pb.LIMIT_UNIT_SPEND, window=month, capacity=budget_nanousd, soft=is_soft)
        limits = [
            limit(unit=pb.LIMIT_UNIT_PARALLEL, capacity=1),
            limit(unit=pb.LIMIT_UNIT_REQUESTS, window=day, capacity=1_000),
            limit(unit=pb.LIMIT_UNIT_TOKENS, window=day, capacity=1_000_000),
            spend,
        ]
        user = await self.admin.users.CreateUser(
            user_service_pb2.CreateUserRequest(user=user_service_pb2.User(name=name), limits=limits)
        )
        api_key = api_key_service_pb2.ApiKey(name=f"{name}/laptop", router=router)
        created = await self.admin.api_keys.CreateApiKey(
            api_key_service_pb2.CreateApiKeyRequest(api_key=api_key)
        )
        return Customer(name, user.id, created.api_key, provider)

    async def start(self, node_id: str, point: Point | None = None) -> Node:
        """Start a data plane, also again on what its predecessor left; return when it is ready.

        Customers that are created later are unknown to it for a moment.
        """
        data_dir = self.folder / node_id
        data_dir.mkdir(mode=0o700, exist_ok=True)
        ready = data_dir / "dataplane.ready"
        ready.unlink(missing_ok=True)
        process = start(self._environment(node_id, data_dir), data_dir / "log", point or "")
        node = Node(node_id, data_dir, process)
        self.stack.push_async_callback(_ended, process)
        await self.until(lambda: _is(ready.exists() or process.exitcode is not None), _START_S)
        assert process.exitcode is None, node.log[-4_000:]
        node.base_url = json.loads(ready.read_text("utf-8"))["base_url"]
        async with aiohttp.ClientSession() as session:
            await self.until(lambda: _is_ready(session, node), _START_S)
        return node

    async def restart(self, node_id: str) -> Node:
        """Start one again, to live on, and wait until the ledger has all that its predecessor knew."""
        seconds, _ = await self.redis.time()
        node = await self.start(node_id)

        async def has_told() -> bool:
            said = await self.redis.hget(self.keyspace.nodes, node_id) or "{}"
            presence = msgspec.json.decode(said, type=Presence)
            return presence.seen_ms > seconds * 1000 and presence.oldest_unreported_ms is None

        await self.until(has_told)
        return node

    async def until(self, look: Callable[[], Awaitable[T]], deadline_s: float = 20.0) -> T:
        """Return the first true value of `look`."""
        return await eventually_async(look, deadline_s)

    async def verify(self) -> operations_service_pb2.CounterVerification:
        """Have all counters compared with the ledger, by whoever maintains them; it may change nothing."""
        stub = operations_service_pb2_grpc.OperationsServiceStub(self.admin.channel)
        found: operations_service_pb2.CounterVerification = await stub.VerifyCounters(
            operations_service_pb2.VerifyCountersRequest()
        )
        return found

    async def until_maintained_by(self, node_id: str) -> None:
        """Wait until a node holds the lease of maintenance."""

        async def is_holder() -> bool:
            return bool(await self.redis.hget(self.keyspace.maintenance, "owner") == node_id)

        await self.until(is_holder)

    async def spent_nanousd(self, customer: Customer) -> int:
        """Return what a customer's budget has settled and holds, read in one step."""
        pattern = f"{self.keyspace.prefix}{LayerKind.SPEND}:*:{customer.user_id}:*"
        found: list[str] = [key async for key in self.redis.scan_iter(match=pattern, count=1_000)]
        keys = [key for key in found if self._layer(key) == "user_spend_per_month"]
        amounts = [await self.redis.hmget(key, ["s", "h"]) for key in keys]
        return max((int(s or 0) + int(h or 0) for s, h in amounts), default=0)

    def _layer(self, key: str) -> str:
        name = self.keyspace.parse_counter(key)
        return layer_name(name) if name else ""

    async def _route_to(self, url: str, name: str) -> str:
        """Have a mock provider serve every model: 1 USD a million tokens in, 2 out."""
        openai = resources_pb2.DIALECT_OPENAI
        endpoint = resources_pb2.Endpoint(dialect=openai, base_url=f"{url}/v1")
        provider = provider_service_pb2.Provider(name=name, kind="mock", endpoints=[endpoint])
        await self.admin.providers.CreateProvider(
            provider_service_pb2.CreateProviderRequest(provider=provider)
        )
        await self.admin.routers.CreateRouter(
            router_service_pb2.CreateRouterRequest(router=router_service_pb2.Router(name=name))
        )
        rule = router_service_pb2.Rule(priority=1, provider=name, models=["*"])
        await self.admin.routers.CreateRule(
            router_service_pb2.CreateRuleRequest(router=name, rule=rule)
        )
        rates = rates_pb2.Rates(
            input_nanousd_per_million=10**9, output_nanousd_per_million=2 * 10**9
        )
        price = price_service_pb2.Price(provider=name, model="mock-*", rates=rates)
        await self.admin.prices.SetPrice(price_service_pb2.SetPriceRequest(price=price))
        return name

    def _environment(self, node_id: str, data_dir: Path) -> dict[str, str]:
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("TOLLKEEPER_")}
        return inherited | {
            "TOLLKEEPER_DATA_DIR": str(data_dir),
            "TOLLKEEPER_PORT": "0",
            "TOLLKEEPER_NODE_ID": node_id,
            "TOLLKEEPER_REDIS_URL": self.redis_url,
            "TOLLKEEPER_CONTROL_PLANE": self.control_plane.address,
            "TOLLKEEPER_JOIN_TOKEN": self.control_plane.join_token,
            "TOLLKEEPER_NODE_KEY": base64.b64encode(node_id.encode().zfill(32)).decode(),
            "TOLLKEEPER_PRIVATE_UPSTREAMS": "127.0.0.0/8",
        }


@asynccontextmanager
async def stack_in(folder: Path) -> AsyncIterator[Stack]:
    """Run everything but data planes; those that are started end with the block."""
    data_dir = folder / "controlplane"
    data_dir.mkdir(mode=0o700)
    server = embedded_redis.start(folder / "redis")
    async with AsyncExitStack() as stack:
        stack.callback(server.stop)
        running = await stack.enter_async_context(program(environment_of(data_dir)))
        admin = AdminApi(running.address, running.owner_token)
        stack.push_async_callback(admin.channel.close)
        client = redis.asyncio.Redis.from_url(server.url, decode_responses=True)
        stack.push_async_callback(client.aclose)
        await admin.create_organization(_ORGANIZATION)
        await _lift_daily_budget(admin)
        yield Stack(folder, running, server.url, client, admin, stack)


async def _lift_daily_budget(admin: AdminApi) -> None:
    """Let the service spend without a limit of its own.

    All victims move its counter at once: what one of them has reported and not yet settled looks like
    drift to rounds that follow each other as quickly as they do here.
    """
    unlimited = limits_pb2.Limit(
        unit=limits_pb2.LIMIT_UNIT_SPEND, window=limits_pb2.LIMIT_WINDOW_DAY, unlimited=True
    )
    limits = limit_service_pb2.SubjectLimits(subject="global", limits=[unlimited])
    await admin.limits.SetLimits(limit_service_pb2.SetLimitsRequest(limits=limits))


async def _ended(process: ForkServerProcess) -> None:
    """See that a process is gone; what it had to lose was looked at before."""
    process.kill()
    await asyncio.to_thread(process.join, _DEATH_S)
    assert process.exitcode is not None


async def _is(value: bool) -> bool:
    return value


async def _is_ready(session: aiohttp.ClientSession, node: Node) -> bool:
    assert node.process.exitcode is None, node.log[-4_000:]
    try:
        async with session.get(f"{node.base_url}/health/ready") as response:
            return response.status == 200
    except aiohttp.ClientError:
        return False
