"""Reporters of usage as tests want them."""

from pathlib import Path

from dataplane.bills import Reporter
from dataplane.control.spool import Spool
from dataplane.control.usage import Pace, UsageReporter
from dataplane.domain.calls import UsageEvent
from tests.control.usage_events import usage_event

NODE_TOKEN = "node-token-that-is-long-enough-for-anybody"
PACE = Pace(gathering=0.01, back_off=0.02)


def reporter_on(
    directory: Path, *addresses: str, pace: Pace = PACE, max_events_in_memory: int = 10_000
) -> UsageReporter:
    """Return a reporter that has not begun to deliver."""
    spool, recovered = Spool.open(directory)
    return UsageReporter(
        spool, recovered, addresses, NODE_TOKEN, "this-node", pace, max_events_in_memory
    )


def close(reporter: Reporter, count: int) -> list[str]:
    """End so many requests; return their ids in their order."""
    events = [usage_event() for _ in range(count)]
    for event in events:
        reporter.record_close(event)
    reporter.flush()
    return [event.request_id for event in events]


async def unacknowledged(reporter: UsageReporter) -> dict[str, UsageEvent]:
    """Return what is not known to be in the ledger."""
    return {
        event.request_id: event
        for batch in [b async for b in reporter.unacknowledged()]
        for event in batch
    }
