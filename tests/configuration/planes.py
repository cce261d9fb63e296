"""Both planes as real programs: a control plane on a prepared database, a Redis, a mock provider, data planes.

Each data plane has a data directory of its own and goes to control planes of its own choice, so that a
`Proxy` can stand between: the control plane is away for one node and not for another.
"""

import asyncio
import base64
import itertools
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import aiohttp
from google.protobuf.duration_pb2 import Duration
from tollkeeper.admin.v1 import api_key_service_pb2 as key_pb
from tollkeeper.admin.v1 import price_service_pb2 as price_pb
from tollkeeper.admin.v1 import provider_service_pb2 as provider_pb
from tollkeeper.admin.v1 import router_service_pb2 as router_pb
from tollkeeper.admin.v1 import user_service_pb2 as user_pb
from tollkeeper.common.v1 import limits_pb2, rates_pb2
from tollkeeper.config.v1 import resources_pb2

from dataplane import embedded_redis
from tests.configuration.large_database import prepared
from tests.distribution.process import Program, environment_of, program
from tests.e2e.waiting import eventually_async
from tests.rpc.admin_api import AdminApi

ROUTER: Final = "mock"
PROVIDER: Final = "mock"
# Layers that nobody asked for here, out of reach.
_SETTINGS: Final = {
    "TOLLKEEPER_DAILY_BUDGET_USD": "1000000",
    "TOLLKEEPER_DAILY_REQUESTS": "100000000",
}
_START_S: Final = 40.0
# A hundred thousand keys take a control plane ten seconds, on a machine that others use too.
_LOAD_S_PER_KEY: Final = 0.001
_END_S: Final = 45.0
_LINE_S: Final = 20.0
_WAIT: Final = Duration(seconds=15)


@dataclass(frozen=True, slots=True)
class Caller:
    """A user of an organization of its own, and its key."""

    organization: str
    user: str
    key: str
    api_key: str

    @property
    def headers(self) -> Mapping[str, str]:
        """Return what it sends with each call."""
        return {"authorization": f"Bearer {self.api_key}"}


@dataclass(slots=True)
class Plane:
    """A data plane, as a process."""

    node_id: str
    data_dir: Path
    process: asyncio.subprocess.Process
    base_url: str

    @property
    def pid(self) -> int:
        """Return its process."""
        return self.process.pid

    @property
    def log(self) -> str:
        """Return what it said, and its predecessors."""
        return (self.data_dir / "log").read_text("utf-8", errors="replace")

    def said(self, event: str) -> list[dict[str, object]]:
        """Return what it logged of one sort, its predecessors included."""
        lines = (
            line for line in self.log.splitlines() if f'"event":"{event}"' in line.replace(" ", "")
        )
        return [json.loads(line) for line in lines]

    async def kill(self) -> None:
        """Kill it at once, and wait until it is gone."""
        if self.process.returncode is None:
            self.process.kill()
        await asyncio.wait_for(self.process.wait(), _END_S)

    async def stop(self) -> int:
        """Stop it in order; return its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return await asyncio.wait_for(self.process.wait(), _END_S)


@dataclass(slots=True)
class Planes:
    """What runs, and what else can be started; everything ends with the block of `planes_in`."""

    folder: Path
    control_plane: Program
    api: AdminApi
    database_url: str
    redis_url: str
    mock_url: str
    http: aiohttp.ClientSession
    stack: AsyncExitStack
    _numbers: "itertools.count[int]"

    async def start(self, node_id: str, control_plane: str | None = None) -> Plane:
        """Start a data plane, also again on what its predecessor left; return when it listens.

        Args:
            node_id: Its name, and that of its data directory.
            control_plane: Where it goes, `host:port`; None: where the control plane is.
        """
        data_dir = self.folder / node_id
        data_dir.mkdir(mode=0o700, exist_ok=True)
        ready = data_dir / "dataplane.ready"
        ready.unlink(missing_ok=True)
        with (data_dir / "log").open("ab") as log:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                *("-m", "dataplane"),
                env=self._environment(node_id, data_dir, control_plane),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        plane = Plane(node_id, data_dir, process, "")
        self.stack.push_async_callback(plane.kill)

        async def listens() -> bool:
            return ready.exists() or process.returncode is not None

        await eventually_async(listens, _START_S)
        assert process.returncode is None, plane.log[-4_000:]
        plane.base_url = json.loads(ready.read_text("utf-8"))["base_url"]
        return plane

    async def started(self, node_id: str, control_plane: str | None = None) -> Plane:
        """Start a data plane; return when it serves."""
        plane = await self.start(node_id, control_plane)
        await self.until_ready(plane)
        return plane

    async def until_ready(self, plane: Plane, deadline_s: float = _START_S) -> None:
        """Wait until a data plane has a configuration and its counters can be asked."""

        async def is_ready() -> bool:
            assert plane.process.returncode is None, plane.log[-4_000:]
            return await self.status(plane, "/health/ready") == 200

        await eventually_async(is_ready, deadline_s)

    async def status(
        self, plane: Plane, path: str = "/v1/models", headers: Mapping[str, str] | None = None
    ) -> int:
        """Return how a data plane answers a GET; listing models counts nothing and asks no Redis."""
        async with self.http.get(f"{plane.base_url}{path}", headers=headers) as response:
            return response.status

    async def until_known(self, caller: Caller, *planes: Plane) -> None:
        """Wait until data planes let a caller in."""

        async def is_known() -> bool:
            found = [await self.status(plane, headers=caller.headers) for plane in planes]
            return set(found) == {200}

        await eventually_async(is_known)

    async def new_caller(self, *, router: str = ROUTER) -> Caller:
        """Create an organization with a user and a key; data planes that run know them then."""
        organization = f"customer-{next(self._numbers)}"
        await self.api.create_organization(organization)
        user, key = f"{organization}/alice", f"{organization}/alice/laptop"
        await self.api.users.CreateUser(
            user_pb.CreateUserRequest(user=user_pb.User(name=user), limits=_layers())
        )
        created = await self.api.api_keys.CreateApiKey(
            key_pb.CreateApiKeyRequest(
                api_key=key_pb.ApiKey(name=key, router=router), wait_for_propagation=_WAIT
            )
        )
        return Caller(organization, user, key, created.api_key)

    def _environment(
        self, node_id: str, data_dir: Path, control_plane: str | None
    ) -> dict[str, str]:
        return _inherited() | {
            "TOLLKEEPER_DATA_DIR": str(data_dir),
            "TOLLKEEPER_PORT": "0",
            "TOLLKEEPER_NODE_ID": node_id,
            "TOLLKEEPER_REDIS_URL": self.redis_url,
            "TOLLKEEPER_CONTROL_PLANE": control_plane or self.control_plane.address,
            "TOLLKEEPER_JOIN_TOKEN": self.control_plane.join_token,
            "TOLLKEEPER_NODE_KEY": base64.b64encode(node_id.encode().zfill(32)).decode(),
            "TOLLKEEPER_PRIVATE_UPSTREAMS": "127.0.0.0/8",
        }


@asynccontextmanager
async def planes_in(folder: Path, *, keys: int = 0) -> AsyncIterator[Planes]:
    """Run everything but data planes, with a router to the mock; `keys` are in the database besides."""
    data_dir = folder / "controlplane"
    data_dir.mkdir(mode=0o700, parents=True)
    database_url = f"sqlite+aiosqlite:///{data_dir / 'tollkeeper.sqlite'}"
    environment = {**environment_of(data_dir), **_SETTINGS, "TOLLKEEPER_DATABASE_URL": database_url}
    if keys:
        await prepared(database_url, keys)
    server = await asyncio.to_thread(embedded_redis.start, folder / "redis")
    async with AsyncExitStack() as stack:
        stack.callback(server.stop)
        mock_url = await stack.enter_async_context(_mock())
        running = await stack.enter_async_context(
            program(environment, start_s=_START_S + keys * _LOAD_S_PER_KEY)
        )
        api = AdminApi(running.address, running.owner_token)
        stack.push_async_callback(api.channel.close)
        http = await stack.enter_async_context(
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=20))
        )
        await _route_to(api, mock_url)
        yield Planes(
            *(folder, running, api, database_url, server.url, mock_url, http, stack),
            _numbers=itertools.count(1),
        )


@asynccontextmanager
async def _mock() -> AsyncIterator[str]:
    """Run a mock provider of its own, so that a busy test does not make it slow; gives its URL."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "dataplane.mock", "--port", "0"),
        env=_inherited(),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        assert process.stdout is not None
        line = await asyncio.wait_for(process.stdout.readline(), _LINE_S)
        yield json.loads(line)["url"]
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def _route_to(api: AdminApi, mock_url: str) -> None:
    """Have the mock serve every model: 1 USD a million tokens in, 2 out."""
    endpoint = resources_pb2.Endpoint(
        dialect=resources_pb2.DIALECT_OPENAI, base_url=f"{mock_url}/v1"
    )
    await api.providers.CreateProvider(
        provider_pb.CreateProviderRequest(
            provider=provider_pb.Provider(name=PROVIDER, kind="mock", endpoints=[endpoint])
        )
    )
    await api.routers.CreateRouter(
        router_pb.CreateRouterRequest(router=router_pb.Router(name=ROUTER))
    )
    await api.routers.CreateRule(
        router_pb.CreateRuleRequest(
            router=ROUTER, rule=router_pb.Rule(priority=1, provider=PROVIDER, models=["*"])
        )
    )
    rates = rates_pb2.Rates(input_nanousd_per_million=10**9, output_nanousd_per_million=2 * 10**9)
    await api.prices.SetPrice(
        price_pb.SetPriceRequest(
            price=price_pb.Price(provider=PROVIDER, model="mock-*", rates=rates)
        )
    )


def _layers() -> list[limits_pb2.Limit]:
    """Return layers of every calendar kind, so that a call is counted by all, and none is short."""
    day, month = limits_pb2.LIMIT_WINDOW_DAY, limits_pb2.LIMIT_WINDOW_MONTH
    return [
        limits_pb2.Limit(unit=limits_pb2.LIMIT_UNIT_REQUESTS, window=day, capacity=10**8),
        limits_pb2.Limit(unit=limits_pb2.LIMIT_UNIT_TOKENS, window=day, capacity=10**11),
        limits_pb2.Limit(unit=limits_pb2.LIMIT_UNIT_SPEND, window=month, capacity=10**15),
    ]


def _inherited() -> dict[str, str]:
    return {k: v for k, v in os.environ.items() if not k.startswith("TOLLKEEPER_")}
