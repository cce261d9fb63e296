"""Requests whose process died: charged, and reported to the ledger.

    overdue ─ find ─ reap ─ unreported ─ find ─ deliver ─ forget
              └─ Redis: charged and listed ─┘    └ ledger ┘

A reaper may die between any two steps: what it reaped stays listed until the ledger has its record, and
whoever maintains the counters then goes on with it.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final  # Any: the fields of a record that another version may have written

import msgspec
import structlog

from dataplane.domain.calls import NO_USAGE, Dialect, UsageEvent, UsageState
from dataplane.domain.limiting import Window
from dataplane.domain.sums import SERVICE_KINDS
from dataplane.limits.buckets import is_shared_half
from dataplane.limits.counters import Keyspace
from dataplane.limits.operations import Answer, Find, Outcome, Reap
from dataplane.limits.upkeep import Forget, Overdue, Unreported
from dataplane.maintenance.budget_news import BudgetNews
from dataplane.maintenance.counter_table import OPERATIONS, parts_of
from dataplane.maintenance.ports import Desk, Reporter
from dataplane.maintenance.shared_halves import ReapedHalf, SharedHalves
from dataplane.maintenance.terms import unfenced

# Limits page, section 6.
MAX_REAPED: Final = 200
DELIVERY_SECONDS: Final = 10.0

_log = structlog.get_logger(__name__)


class Reaper:
    """Reaps what its owner left, and sees that the ledger learns of it.

    Attributes:
        reaped_total: Requests charged at what they reserved, since the start.
    """

    def __init__(
        self, desk: Desk, reporter: Reporter, news: BudgetNews, halves: SharedHalves
    ) -> None:
        """Deliver through `reporter`; of shared `halves` others deliver the records."""
        self._halves = halves
        self._desk = desk
        self._reporter = reporter
        self._news = news
        self.reaped_total = 0

    async def round(self, fence: int) -> None:
        """Reap at most 200 overdue requests; report those, and what an earlier reaper left.

        Raises:
            FencedError: The term is over.
            LedgerUnavailable: They stay listed.
            RedisError, OSError: Redis did not answer; anything may be repeated.
        """
        overdue, listed = await self._desk.run(Overdue(MAX_REAPED), Unreported(MAX_REAPED))
        if overdue[2]:
            await self._reap(overdue, fence)
            [listed] = await self._desk.run(Unreported(MAX_REAPED))
        if listed[2]:
            await self._report(listed)

    async def _reap(self, overdue: Answer, fence: int) -> None:
        now_ms, request_ids = overdue[1], overdue[2]
        for part in parts_of(request_ids, OPERATIONS):
            found = await self._found(part)
            answers = unfenced(
                await self._desk.run(
                    *(_reap_of(name, each, fence) for name, each in zip(part, found, strict=True))
                )
            )
            for name, answer in zip(part, answers, strict=True):
                if answer[0] == Outcome.OK:
                    self.reaped_total += 1
                    self._news.tell(answer[1], now_ms)
                    _log.warning("request_abandoned", request_id=name)
                elif answer[0] == Outcome.FAULT:
                    _log.error("request_not_reaped", request_id=name, fault=answer[1])

    async def _found(self, request_ids: Sequence[str]) -> list[Answer]:
        """Return the reservations of requests; one that cannot be read reads as without any fields."""
        try:
            return await self._desk.run(*map(Find, request_ids))
        except ValueError:
            # One answer is no text: it must not keep the others from being reaped.
            pass
        found: list[Answer] = []
        for each in request_ids:
            try:
                found += await self._desk.run(Find(each))
            except ValueError:
                found.append([Outcome.OK, 0, [], "", []])
        return found

    async def _report(self, listed: Answer) -> None:
        events, done = [], []
        halves: list[ReapedHalf] = []
        for part in parts_of(listed[2], OPERATIONS):
            found = await self._found(part)
            for name, each in zip(part, found, strict=True):
                event = None
                if each[0] == Outcome.OK and is_shared_half(each[3]):
                    halves.append(ReapedHalf(name, each[2]))
                    continue
                if each[0] == Outcome.OK:
                    event = abandoned_event(name, each[3], each[2], self._desk.keyspace)
                    if event is None:
                        _log.error("abandoned_request_unreadable", request_id=name)
                # Without a record its true figure came in the meantime, by its own process.
                if event is None:
                    done.append(name)
                else:
                    events.append(event)
            await asyncio.sleep(0)
        if events:
            async with asyncio.timeout(DELIVERY_SECONDS + 1):
                refused = await self._reporter.deliver_abandoned(events, DELIVERY_SECONDS)
            for name in refused:
                _log.error("abandoned_request_refused", request_id=name)
            done += (event.request_id for event in events)
        done += await self._halves.account_for(halves, listed[1])
        for part in parts_of(done, OPERATIONS):
            await self._desk.run(*map(Forget, part))


def abandoned_event(
    request_id: str, meta: str, keys: Sequence[str], keyspace: Keyspace
) -> UsageEvent | None:
    """Return the record of a request whose process died, charged at what it reserved.

    Args:
        request_id: The request.
        meta: What its admission left: an object with fields of `UsageEvent`; those that it does not
            have are empty.
        keys: Its counters: they say in which days and months it was counted.
        keyspace: Reads the keys.

    Returns:
        None when the meta is no such object.
    """
    try:
        fields = msgspec.json.decode(meta, type=dict[str, Any])
        event = msgspec.convert({**_EMPTY, **fields}, UsageEvent)
    except msgspec.MsgspecError:
        return None
    return msgspec.structs.replace(
        event,
        request_id=request_id,
        state=UsageState.ABANDONED,
        usage=replace(NO_USAGE),
        cost_nanousd=event.reserved_nanousd,
        charged_nanousd=event.reserved_nanousd,
        **_counted_periods(keys, keyspace),
    )


# Everything of a record that has no default.
_EMPTY: Final[dict[str, Any]] = {
    **{
        name: "" for name in UsageEvent.__struct_fields__ if UsageEvent.__annotations__[name] is str
    },
    **{name: 0 for name in UsageEvent.__struct_fields__ if UsageEvent.__annotations__[name] is int},
    "state": UsageState.ABANDONED,
    "dialect": Dialect.OPENAI,
    "stream": False,
    "usage": {},
}


def _counted_periods(keys: Sequence[str], keyspace: Keyspace) -> dict[str, str]:
    """Return the fields of a record that its counters know: Redis chose them, by its own clock."""
    fields: dict[str, str] = {}
    for key in keys:
        counter = keyspace.parse_counter(key)
        if counter is None:
            continue
        is_service = counter.subject_kind in SERVICE_KINDS
        if counter.window is Window.DAY:
            fields["service_day" if is_service else "usage_day"] = counter.period_id
        elif counter.window is Window.MONTH and not is_service:
            fields["usage_month"] = counter.period_id
    return fields


def _reap_of(request_id: str, found: Answer, fence: int) -> Reap:
    """Return the reap of a request as it was found; of one that is gone only the lease is left."""
    if found[0] != Outcome.OK:
        return Reap(request_id, (), fence)
    return Reap(request_id, found[2], fence, _charged_nanousd(found[3]))


class _Charged(msgspec.Struct):
    reserved_nanousd: int | None = None


_charged_decoder: Final = msgspec.json.Decoder(_Charged)


def _charged_nanousd(meta: str) -> int | None:
    """Return what the record of a request will charge; None when its meta does not say."""
    try:
        return _charged_decoder.decode(meta).reserved_nanousd
    except msgspec.MsgspecError:
        return None
