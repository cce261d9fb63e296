"""Data planes on spread counters: a sharded limiter, a reporter and a sharded maintainer each."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import redis

from dataplane.domain.counters import CounterName
from dataplane.domain.limiting import SubjectKind, Unit, Window
from dataplane.domain.principals import Principal, SubjectLimits
from dataplane.domain.snapshot import Snapshot
from dataplane.limits.buckets import SHARED_TAG, bucket_tag
from dataplane.limits.counters import Keyspace
from dataplane.limits.redis_urls import RedisMode
from dataplane.limits.sharded import ShardedLimiter
from dataplane.limits.topology import TargetOf, targets_at
from dataplane.maintenance.maintainer import Pace
from dataplane.maintenance.sharded import ShardedMaintainer
from dataplane.maintenance.stopping import stop
from tests.maintenance.book import Book
from tests.maintenance.nodes import FAST, Node, caller, entry, now_ms, periods, snapshot_of, until
from tests.maintenance.post import Post
from tests.topologies.spread import ORGANIZATIONS

PACE = replace(FAST, look=0.02, reap=0.1, reconcile_least=0.1, reconcile_most=0.1)
CALLERS = {each: caller(f"u_{each}", each) for each in ORGANIZATIONS}
LIMITS = {
    f"organization:{each}": SubjectLimits((entry(Unit.SPEND, Window.DAY),)) for each in CALLERS
}
SHARED_LIMITS = (
    entry(Unit.REQUESTS, Window.DAY),
    entry(Unit.TOKENS, Window.MONTH),
    entry(Unit.SPEND, Window.DAY),
)


def snapshot_for(*principals: Principal, **more: Any) -> Snapshot:
    """Return a configuration with budgets of organizations and of the whole service."""
    return snapshot_of(*principals, limits=LIMITS, service=SHARED_LIMITS, **more)


@dataclass(slots=True)
class Fleet:
    """Data planes, their servers and their book."""

    target_of: TargetOf
    client_of: Callable[[str], redis.Redis]
    book: Book
    snapshot: Snapshot
    stack: AsyncExitStack
    nodes: list[Node] = field(default_factory=list)

    async def node(self, *, maintains: bool = True, pace: Pace = PACE) -> Node:
        """Start a node."""
        node_id = f"node-{len(self.nodes)}"
        limiter = await ShardedLimiter.connect(self.target_of, timeout_seconds=1.0)
        post, snapshots = Post(self.book), [self.snapshot]
        maintainer = ShardedMaintainer(
            self.target_of, limiter, post, self.book, lambda: snapshots[-1], node_id, now_ms, pace
        )
        node = Node(node_id, limiter, None, post, maintainer, snapshots)  # type: ignore[arg-type] # they are used in the same way
        self.nodes.append(node)
        self.book.nodes.add(node_id)
        self.stack.push_async_callback(limiter.aclose, 1.0)
        self.stack.push_async_callback(maintainer.aclose)
        node.tasks.append(asyncio.create_task(post.run()))
        if maintains:
            node.tasks.append(asyncio.create_task(maintainer.run()))
        self.stack.push_async_callback(_ended, node)
        return node

    async def serving(self, count: int = 1) -> list[Node]:
        """Start nodes and wait until they serve every organization."""
        nodes = [await self.node() for _ in range(count)]
        for node in nodes:
            await until(lambda node=node: is_serving(node))  # type: ignore[misc] # a lambda of its turn
        return nodes

    def read(self, counter: CounterName) -> tuple[int, int]:
        """Return what a counter has settled and holds, on whichever server."""
        tag = self.tag_of(counter)
        server, key = self.client_of(tag), Keyspace(tag).counter_key(counter)
        if counter.unit is Unit.SPEND:
            found: Any = server.hmget(key, "s", "h")
            return int(found[0] or 0), int(found[1] or 0)
        count: Any = server.get(key)
        return int(count or 0), 0

    def spoil(self, counter: CounterName, settled: int) -> None:
        """Make a counter wrong."""
        tag = self.tag_of(counter)
        server, key = self.client_of(tag), Keyspace(tag).counter_key(counter)
        if counter.unit is Unit.SPEND:
            server.hset(key, "s", str(settled))
        else:
            server.set(key, settled, keepttl=True)

    def tag_of(self, counter: CounterName) -> str:
        match counter.subject_kind:
            case SubjectKind.GLOBAL | SubjectKind.IP | SubjectKind.ENDPOINT | SubjectKind.MODEL:
                return SHARED_TAG
            case SubjectKind.ORGANIZATION:
                return bucket_tag(counter.subject_id)
            case _:
                return bucket_tag(counter.subject_id.removeprefix("u_"))

    def counters(self, organizations: Iterable[str] = ORGANIZATIONS) -> list[CounterName]:
        """Return every counter of the configuration with a sum in the ledger."""
        days = periods(now_ms())
        day, month = days["usage_day"], days["usage_month"]
        found = [
            CounterName(SubjectKind.GLOBAL, "", Unit.REQUESTS, Window.DAY, day),
            CounterName(SubjectKind.GLOBAL, "", Unit.TOKENS, Window.MONTH, month),
            CounterName(SubjectKind.GLOBAL, "", Unit.SPEND, Window.DAY, day),
        ]
        for each in organizations:
            user = SubjectKind.USER, f"u_{each}"
            found += (
                CounterName(SubjectKind.ORGANIZATION, each, Unit.SPEND, Window.DAY, day),
                CounterName(*user, Unit.REQUESTS, Window.DAY, day),
                CounterName(*user, Unit.TOKENS, Window.DAY, day),
                CounterName(*user, Unit.SPEND, Window.MONTH, month),
            )
        return found

    def differences(self) -> dict[CounterName, tuple[tuple[int, int], int]]:
        """Return every counter that is not what the ledger says, or holds anything."""
        found = {each: (self.read(each), self.book.sum_of(each)) for each in self.counters()}
        return {each: pair for each, pair in found.items() if pair[0] != (pair[1], 0)}

    async def until_agreed(self) -> None:
        """Wait until everything that ended is settled, reported and counted."""
        await self.settled()
        ends_at = time.monotonic() + 10.0
        while left := self.differences():
            assert time.monotonic() < ends_at, left
            await asyncio.sleep(0.02)

    def strays(self) -> set[str]:
        """Return the counters that are under a tag where they are not counted."""
        found = set()
        for tag in (SHARED_TAG, *map(bucket_tag, CALLERS)):
            keyspace = Keyspace(tag)
            for key in self.client_of(tag).scan_iter(f"{keyspace.prefix}[ps]:*"):
                counter = keyspace.parse_counter(key.decode())
                if counter is not None and self.tag_of(counter) != tag:
                    found.add(key.decode())
        return found

    async def settled(self) -> None:
        """Wait until everything that ended is settled and in the book."""
        await until(
            lambda: all(
                node.is_dead or not (node.post.waiting or node.limiter.queued)
                for node in self.nodes
            )
        )

    async def kill(self, node: Node) -> None:
        """Stop a node as a killed process does: nothing is settled, delivered, resigned or renewed."""
        sharded: Any = node
        node.is_dead = True
        for maintainer in sharded.maintainer._maintainers.values():
            maintainer._lease.term = None  # nothing is resigned
        for limiter in sharded.limiter._limiters.values():
            limiter._heartbeat.cancel()
        await stop(*node.tasks)


def is_serving(node: Node, organizations: Iterable[str] = ORGANIZATIONS) -> bool:
    """Tell whether a node has the counters of these organizations."""
    maintainer: Any = node.maintainer
    limiter: Any = node.limiter
    tags = {SHARED_TAG, *map(bucket_tag, organizations)}
    return tags <= maintainer.tags and not tags & limiter.unavailable_tags


async def _ended(node: Node) -> None:
    for task in node.tasks:
        task.cancel()
    await asyncio.wait(node.tasks)
    for task in node.tasks:
        if not task.cancelled():
            task.result()


@asynccontextmanager
async def fleet_on(
    url: str, servers: Iterable[redis.Redis], client_of: Callable[[str], redis.Redis]
) -> AsyncIterator[Fleet]:
    """Make a fleet without nodes, on servers that are emptied: all counters are cold."""
    for server in servers:
        server.flushall()
    async with AsyncExitStack() as stack:
        snapshot = snapshot_for(*CALLERS.values())
        yield Fleet(targets_at(url, RedisMode.ORG), client_of, Book(), snapshot, stack)
