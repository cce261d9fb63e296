"""Data planes as far as the counters are concerned: a limiter, a reporter and a maintainer each."""

import asyncio
import contextlib
import itertools
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec

from dataplane.domain.calls import NO_USAGE, Usage, UsageEvent, UsageState
from dataplane.domain.counters import CounterName
from dataplane.domain.limiting import Demand, SubjectKind, Unit, Window
from dataplane.domain.periods import Calendar
from dataplane.domain.prices import PriceBook
from dataplane.domain.principals import (
    ApiKey,
    LimitEntry,
    Organization,
    Principal,
    Service,
    SubjectLimits,
    Tier,
    User,
)
from dataplane.domain.request_ids import request_id
from dataplane.domain.snapshot import Position, Snapshot
from dataplane.limits.counters import Keyspace
from dataplane.limits.desk import CounterDesk, open_counters
from dataplane.limits.limiter import Limiter
from dataplane.limits.reservation import Reservation
from dataplane.limits.target import Target
from dataplane.maintenance.maintainer import Maintainer, Pace
from dataplane.maintenance.stopping import stop
from tests.control.usage_events import usage_event
from tests.maintenance.book import Book
from tests.maintenance.post import Post

PATIENCE_SECONDS = 10.0
# Everything that production does within seconds, within a few hundredths.
FAST = Pace(
    beat=0.05,
    look=0.01,
    reap=0.02,
    reconcile_least=0.02,
    reconcile_most=0.05,
    quiet=0.0,
    rebuild_wait=2.0,
    frozen=20.0,
    between=0.05,
    retry=0.02,
    lease_ms=400,
    seen_within_ms=1_000,
)
_numbers = itertools.count()
_calendar = Calendar()


def entry(unit: Unit, window: Window, capacity: int = 1_000_000_000, **more: Any) -> LimitEntry:
    return LimitEntry(unit.value, window.value, capacity, **more)


USER_LIMITS = (
    entry(Unit.REQUESTS, Window.DAY),
    entry(Unit.TOKENS, Window.DAY),
    entry(Unit.SPEND, Window.MONTH),
    entry(Unit.PARALLEL, Window.NONE, 100),
)


def snapshot_of(
    *principals: Principal,
    users: tuple[LimitEntry, ...] = USER_LIMITS,
    limits: dict[str, SubjectLimits] | None = None,
    service: tuple[LimitEntry, ...] = (entry(Unit.REQUESTS, Window.DAY),),
    tiers: dict[str, Tier] | None = None,
) -> Snapshot:
    return Snapshot(
        position=Position("epoch", next(_numbers), b""),
        service=Service(default_user_limits=users, default_global_limits=service),
        keys_by_sha256={
            each.principal_id.encode(): ApiKey(each.principal_id, each) for each in principals
        },
        routers={},
        prices=PriceBook([]),
        limits=limits or {},
        tiers=tiers or {},
    )


def caller(user_id: str = "u_1", organization_id: str = "o_1") -> Principal:
    user = User(user_id, user_id, Organization(organization_id, organization_id))
    return Principal(SubjectKind.KEY, f"k_{user_id}", "key", user, "router")


CALLER = caller()


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def new_request_id() -> str:
    return request_id(now_ms(), secrets.token_bytes(10))


@dataclass(slots=True)
class Request:
    """A request in flight."""

    node: "Node"
    reservation: Reservation
    event: UsageEvent

    def end(self, tokens: int = 5, cost: int = 50) -> None:
        """Settle and record, as a bill does: at one instant."""
        if self.node.is_dead:
            return
        self.reservation.settle(tokens, cost)
        self.node.post.record(
            msgspec.structs.replace(
                self.event,
                state=UsageState.SETTLED,
                usage=Usage(input_total_tokens=tokens),
                cost_nanousd=cost,
                charged_nanousd=cost,
            )
        )


@dataclass(slots=True)
class Node:
    """One data plane."""

    node_id: str
    limiter: Limiter
    desk: CounterDesk
    post: Post
    maintainer: Maintainer
    snapshots: list[Snapshot]
    tasks: list[asyncio.Task[None]] = field(default_factory=list)
    is_dead: bool = False

    @property
    def snapshot(self) -> Snapshot:
        return self.snapshots[-1]

    async def begin(
        self, principal: Principal = CALLER, tokens: int = 10, cost: int = 100
    ) -> Request:
        """Admit a request as the pipeline does."""
        rid, user = new_request_id(), principal.user
        plan = self.snapshot.plan_for(principal, "", "", "", now_ms())
        event = msgspec.structs.replace(
            usage_event(UsageState.ABANDONED, rid),
            organization_id=user.organization.organization_id,
            user_id=user.user_id,
            key_id=principal.principal_id,
            device_id="",
            endpoint="chat",
            model="gpt-4.1",
            node_id=self.node_id,
            usage=NO_USAGE,
            generations=(),
            cost_nanousd=cost,
            charged_nanousd=cost,
            reserved_nanousd=cost,
            reserved_tokens=tokens,
            **periods(now_ms()),
        )
        reservation = await self.limiter.reserve(
            rid, plan, Demand(tokens, cost), msgspec.json.encode(event)
        )
        self.post.begin(rid)
        event = msgspec.structs.replace(event, **periods(reservation.admitted_at_ms))
        return Request(self, reservation, event)

    async def serve(
        self, principal: Principal = CALLER, tokens: int = 5, cost: int = 50
    ) -> Request:
        """Admit and settle a request."""
        request = await self.begin(principal)
        request.end(tokens, cost)
        return request

    async def die(self) -> None:
        """Stop as a killed process does: nothing is settled, delivered, resigned or renewed."""
        self.is_dead = True
        self.maintainer._lease.term = None  # nothing is resigned
        self.limiter._heartbeat.cancel()
        await stop(*self.tasks)


def periods(at_ms: int) -> dict[str, str]:
    day = _calendar.at(Window.DAY, "UTC", at_ms).period_id
    return {"usage_day": day, "usage_month": day[:6], "service_day": day}


@dataclass(slots=True)
class Cluster:
    """Nodes on one key space and one book."""

    redis_url: str | Target
    hash_tag: str
    book: Book
    snapshot: Snapshot
    stack: contextlib.AsyncExitStack
    keyspace: Keyspace
    desk: CounterDesk
    nodes: list[Node] = field(default_factory=list)

    async def node(self, *, maintains: bool = True, **pace: Any) -> Node:
        """Start a node; `pace` differs from `FAST`."""
        node_id = f"node-{len(self.nodes)}"
        limiter = await Limiter.connect(self.redis_url, hash_tag=self.hash_tag, timeout_seconds=1.0)
        desk = CounterDesk(self.redis_url, self.keyspace)
        post = Post(self.book)
        snapshots = [self.snapshot]
        maintainer = Maintainer(
            desk,
            limiter,
            post,
            self.book,
            lambda: snapshots[-1],
            node_id,
            now_ms,
            replace(FAST, **pace),
        )
        node = Node(node_id, limiter, desk, post, maintainer, snapshots)
        self.nodes.append(node)
        self.book.nodes.add(node_id)
        self.stack.push_async_callback(desk.aclose)
        self.stack.push_async_callback(limiter.aclose, 1.0)
        node.tasks.append(asyncio.create_task(post.run()))
        if maintains:
            node.tasks.append(asyncio.create_task(maintainer.run()))
        self.stack.push_async_callback(_ended, node)
        return node

    async def counter(self, unit: Unit, window: Window, user_id: str = "u_1") -> tuple[int, int]:
        """Return what a user's counter has settled and holds."""
        return await self.balance(self.name(unit, window, user_id))

    async def balance(self, counter: CounterName) -> tuple[int, int]:
        key = self.keyspace.counter_key(counter)
        if counter.unit is Unit.SPEND:
            settled, held = await self.desk.client.hmget(key, "s", "h")
            return int(settled or 0), int(held or 0)
        return int(await self.desk.client.get(key) or 0), 0

    async def set_counter(self, counter: CounterName, settled: int, held: int = 0) -> None:
        """Make a counter wrong."""
        key = self.keyspace.counter_key(counter)
        if counter.unit is Unit.SPEND:
            await self.desk.client.hset(key, mapping={"s": settled, "h": held})
        else:
            await self.desk.client.set(key, settled, keepttl=True)

    def name(self, unit: Unit, window: Window, user_id: str = "u_1") -> CounterName:
        days = periods(now_ms())
        period = days["usage_day"] if window is Window.DAY else days["usage_month"]
        return CounterName(SubjectKind.USER, user_id, unit, window, period)

    async def rounds(self, count: int) -> None:
        """Wait for so many rounds of comparison; there must be a counter."""
        wanted = self.book.asked_for_sums + count
        await until(lambda: self.book.asked_for_sums >= wanted)

    async def settled(self) -> None:
        """Wait until everything that ended is settled and in the book."""
        await until(
            lambda: all(
                node.is_dead or not (node.post.waiting or node.limiter.queued)
                for node in self.nodes
            )
        )


async def _ended(node: Node) -> None:
    await stop(*node.tasks)
    for task in node.tasks:
        if not task.cancelled():
            task.result()


@asynccontextmanager
async def cluster_on(
    redis_url: str | Target, snapshot: Snapshot | None = None, *, is_cold: bool = False
) -> AsyncIterator[Cluster]:
    """A key space of its own."""
    hash_tag = secrets.token_hex(6)
    if not is_cold:
        await open_counters(redis_url, hash_tag)
    async with contextlib.AsyncExitStack() as stack:
        keyspace = Keyspace(hash_tag)
        desk = CounterDesk(redis_url, keyspace)
        stack.push_async_callback(desk.aclose)
        yield Cluster(
            redis_url,
            hash_tag,
            Book(),
            snapshot or snapshot_of(CALLER),
            stack,
            keyspace,
            desk,
        )


async def until(condition: Callable[[], bool], seconds: float = PATIENCE_SECONDS) -> None:
    """Wait for a condition that others bring about."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.005)


async def until_is(
    look: Callable[[], Awaitable[Any]], wanted: Any, seconds: float = PATIENCE_SECONDS
) -> None:
    """Wait until `look` returns what is wanted; say what it returned instead."""
    ends_at = time.monotonic() + seconds
    while (found := await look()) != wanted:
        assert time.monotonic() < ends_at, f"{found!r} is not {wanted!r}"
        await asyncio.sleep(0.005)
