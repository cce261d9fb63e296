"""The metrics of a running data plane: what is measured for them, and the port where they are shown."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import structlog

from dataplane.apply_times import measure_applies
from dataplane.changes import Changes
from dataplane.control.watch import Watch
from dataplane.domain.histograms import Buckets
from dataplane.freshness import Freshness
from dataplane.http.health import Health
from dataplane.metrics_listener import metrics_served
from dataplane.settings import Settings

_log = structlog.get_logger(__name__)


@asynccontextmanager
async def metrics_of(
    settings: Settings, watch: Watch, changes: Changes, freshness: Freshness, health: Health
) -> AsyncIterator[int | None]:
    """Measure and show while the block runs; yields the port, None where metrics are off.

    Raises:
        OSError: The port is taken.
    """
    if settings.metrics_port is None:
        yield None
        return
    # Loads the metrics library, which takes longer than most imports and which only this needs.
    from dataplane.metrics import Sources, exposition

    apply_seconds = Buckets()
    sources = Sources(
        watch.figures,
        watch.holdings,
        freshness,
        apply_seconds,
        health.limits_state,
        health.unreported_records,
        lambda: health.pipeline.in_flight,
    )
    expose = exposition(sources)
    measuring = asyncio.create_task(measure_applies(watch.figures, changes, apply_seconds))
    try:
        async with metrics_served(settings.host, settings.metrics_port, expose) as port:
            _log.info("metrics_served", port=port)
            yield port
    finally:
        measuring.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await measuring
