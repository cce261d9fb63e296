"""The composition root: builds a data plane from its settings, runs it, and takes it apart.

Start: the spool is locked and read, the last known configuration is put in force, then the stream
opens, then the port. Stop: new requests are refused, streams in flight finish, settlements and
records are written, then everything closes.
"""

import asyncio
import contextlib
import gc
import json
import os
import signal
import socket
import time
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from importlib.metadata import version
from typing import Final, cast

import structlog

from dataplane.admitting import Admitting
from dataplane.bills import BillBook
from dataplane.control.channels import Channels
from dataplane.control.current import CurrentSnapshot, Revoked
from dataplane.control.enrollment import Enrollment
from dataplane.control.last_known_good import LastKnownGood
from dataplane.control.sightings import Sightings
from dataplane.control.spool import Recovered, Spool
from dataplane.control.sums import LedgerClient
from dataplane.control.usage import UsageReporter
from dataplane.control.user_usage import UserUsageClient
from dataplane.control.watch import Condition, Node, Watch
from dataplane.counting import Counting
from dataplane.domain.breaker import BreakerState
from dataplane.domain.client_addresses import ClientAddresses
from dataplane.domain.revocations import Revocation
from dataplane.freshness import Freshness
from dataplane.http.cors import Cors
from dataplane.http.device_desk import DeviceDesk
from dataplane.http.entry import AsgiApp, Entry
from dataplane.http.errors import status_of
from dataplane.http.front import Front
from dataplane.http.health import Health
from dataplane.http.quart_app import quart_app
from dataplane.http.usage import OwnNumbers
from dataplane.limits.emergency import Emergency
from dataplane.limits.guard_memory import GuardMemory
from dataplane.limits.guards import Guards
from dataplane.limits.recovery import Leftover, settle_leftovers
from dataplane.measuring import metrics_of
from dataplane.membership import membership
from dataplane.pipeline import Pipeline
from dataplane.serving import listen, serve
from dataplane.settings import Settings
from dataplane.upstream.addresses import AllowedAddresses
from dataplane.upstream.attempts import Upstreams
from dataplane.upstream.transport import AiohttpTransport

_log = structlog.get_logger(__name__)
VERSION: Final = version("tollkeeper")
_READY_FILE: Final = "dataplane.ready"
# What is not delivered by then stays in the spool for the next start; most was when counting ended.
_FLUSH_SECONDS: Final = 1.0
_RECORDS_AT_ONCE: Final = 500
# Collections of the youngest generation cost a stream its pace. One of the middle generation looks through all that
# came and stayed since the last, which is everything while a configuration arrives: after 20 times 50,000 objects it
# lasted a quarter of a second. What stays for good is frozen when it is in force (`control/applying.py`).
GC_THRESHOLDS: Final = (10_000, 4, 200)


def clock_ms() -> int:
    """Return Unix milliseconds."""
    return time.time_ns() // 1_000_000


async def run(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT.

    Raises:
        OSError: The port is taken.
        ValueError: A setting cannot be used, in one line.
    """
    settings.data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    stop = asyncio.Event()
    async with AsyncExitStack() as stack:
        sock = listen(settings.host, settings.port)
        stack.callback(sock.close)
        front, metrics_port = await _built(settings, stack)
        _on_signals(stop, front.pipeline)
        entry = Entry(front, cast("AsgiApp", quart_app(front)))
        app: AsgiApp = Cors(entry, settings.cors_origins) if settings.cors_origins else entry
        gc.collect()
        gc.freeze()
        gc.set_threshold(*GC_THRESHOLDS)
        stack.enter_context(_ready_file(settings, sock, metrics_port))
        await serve(app, sock, stop)


async def _built(settings: Settings, stack: AsyncExitStack) -> tuple[Front, int | None]:
    """Build everything behind the port; `stack` takes it apart in the opposite order.

    Also returns the port for metrics, None where they are off.
    """
    member = await stack.enter_async_context(membership(settings, clock_ms))
    node_id, token, channels = member.node_id, member.token, member.channels
    spool, recovered = Spool.open(settings.data_dir / "spool")
    # Before anything is delivered: what is acknowledged leaves the spool.
    leftovers = await _leftovers(spool, recovered)
    sightings = Sightings()
    reporter = UsageReporter(
        spool,
        recovered,
        settings.control_plane,
        token,
        node_id,
        sightings=sightings,
        channels=channels,
    )
    reporter.start()
    stack.push_async_callback(reporter.aclose, _FLUSH_SECONDS)
    ledger = LedgerClient(settings.control_plane, token, channels=channels)
    stack.push_async_callback(ledger.aclose)

    terminations: set[asyncio.Task[int]] = set()

    def terminate(revoked: Revoked) -> None:
        task = asyncio.create_task(pipeline.terminate(revoked), name="terminate")
        terminations.add(task)
        task.add_done_callback(terminations.discard)

    current = CurrentSnapshot(terminate)
    redis_url, mode = settings.redis_url.get_secret_value(), settings.redis_mode
    counting = await stack.enter_async_context(
        Counting.open(redis_url, mode, reporter, ledger, lambda: current.latest, node_id, clock_ms)
    )
    limiter = counting.limiter
    emergency = Emergency(settings.data_dir, clock_ms)
    stack.callback(emergency.close)
    upstreams = Upstreams(AiohttpTransport(AllowedAddresses(settings.private_upstreams)))
    stack.push_async_callback(upstreams.aclose)
    bills = BillBook(reporter, node_id, clock_ms, status_of)

    def revoked_elsewhere(revocation: Revocation) -> None:
        # Whoever is cut off from the control plane hears of it through Redis.
        watch.overheard.take(revocation)

    admitting = Admitting(limiter, bills, clock_ms, emergency, revoked_elsewhere)
    pipeline = Pipeline(current, admitting, upstreams, bills, clock_ms)
    watch = await stack.enter_async_context(
        _watching(settings, current, reporter, counting, Node(node_id, VERSION, token), channels)
    )
    freshness = Freshness(watch.figures, lambda: current.latest)
    await stack.enter_async_context(_running(freshness.run()))
    counting.start_maintaining()
    await stack.enter_async_context(_running(settle_leftovers(limiter, leftovers)))
    # Cold counters are no reason: guards of an emptied server begin with a whole burst.
    guards = Guards(counting.shared_target, lambda: limiter.state is not BreakerState.OPEN)
    stack.push_async_callback(guards.aclose)
    enrollment = Enrollment(settings.control_plane, token, node_id, channels=channels)
    stack.push_async_callback(enrollment.aclose)
    user_usages = UserUsageClient(settings.control_plane, token, channels=channels)
    stack.push_async_callback(user_usages.aclose)

    def limits_state() -> str:
        return "cold" if limiter.is_cold else limiter.state.value

    health = Health(pipeline, VERSION, limits_state, lambda: reporter.unreported_records, freshness)
    metrics_port = await stack.enter_async_context(
        metrics_of(settings, watch, counting.changes, freshness, health)
    )
    front = Front(
        pipeline,
        ClientAddresses(settings.trusted_proxies, settings.client_ip_header),
        health,
        DeviceDesk(pipeline, GuardMemory(guards), enrollment, sightings),
        OwnNumbers(pipeline, limiter, user_usages),
    )
    return front, metrics_port


async def _leftovers(spool: Spool, recovered: Recovered) -> list[Leftover]:
    """Return what former processes left, read in batches: their records are large, these are not."""
    leftovers = [Leftover.of(event) for event in recovered.opens]
    for start in range(0, len(recovered.closes), _RECORDS_AT_ONCE):
        ids = recovered.closes[start : start + _RECORDS_AT_ONCE]
        leftovers += [Leftover.of(event) for event in await spool.read_closes(ids)]
    return leftovers


@asynccontextmanager
async def _watching(
    settings: Settings,
    current: CurrentSnapshot,
    reporter: UsageReporter,
    counting: Counting,
    node: Node,
    channels: Channels,
) -> AsyncIterator[Watch]:
    """Put the last known configuration in force, then follow the control plane."""
    keeper = None
    if settings.node_key_bytes is None:
        _log.warning("no_node_key", effect="a restart without the control plane cannot serve")
    else:
        keeper = LastKnownGood(settings.data_dir, settings.node_key_bytes, clock_ms)
    watch = Watch(
        settings.control_plane,
        node,
        current,
        clock_ms,
        condition=Condition(
            unreported_records=lambda: reporter.unreported_records,
            oldest_unreported_ms=lambda: reporter.oldest_unreported_ms,
            are_limits_available=lambda: counting.limiter.is_available,
            maintains_counters=lambda: counting.maintainer.is_holder,
        ),
        keeper=keeper,
        on_counter_task=counting.do,
        on_revocation=counting.limiter.mark_revoked,
        changes=counting.changes,
        connect=channels.to,
    )
    if keeper is not None:
        await keeper.load(watch.restore)
    async with _running(watch.run()):
        yield watch
    if keeper is not None:
        await keeper.aclose()


@asynccontextmanager
async def _running(work: Coroutine[object, object, None]) -> AsyncIterator[None]:
    """Run `work` beside the body, and cancel it after."""
    task = asyncio.create_task(work)
    task.add_done_callback(_log_failure)
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


def _log_failure(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        _log.error("background_task_failed", task=task.get_name(), exc_info=error)


def _on_signals(stop: asyncio.Event, pipeline: Pipeline) -> None:
    def drain() -> None:
        pipeline.is_draining = True
        stop.set()

    loop = asyncio.get_running_loop()
    for each in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(each, drain)


@contextlib.contextmanager
def _ready_file(
    settings: Settings, sock: socket.socket, metrics_port: int | None
) -> Iterator[None]:
    """Say where this process listens, for whoever started it on a free port."""
    path = settings.data_dir / _READY_FILE
    host, port = sock.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    content = {
        "base_url": f"http://{shown}:{port}",
        "port": port,
        "metrics_port": metrics_port,
        "pid": os.getpid(),
    }
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(content), encoding="utf-8")
    partial.replace(path)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
