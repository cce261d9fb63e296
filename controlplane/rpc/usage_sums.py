"""What the ledger says of counters, requests and users: the part of `usage.v1.UsageService` that data planes ask."""

import asyncio
import re
from collections import defaultdict
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Final, cast

import structlog
from sqlalchemy.exc import SQLAlchemyError
from sqlmodel.ext.asyncio.session import AsyncSession
from tollkeeper.common.v1 import limits_pb2
from tollkeeper.usage.v1 import usage_service_pb2 as pb
from tollkeeper.usage.v1 import usage_service_pb2_grpc as pb_grpc

from controlplane.domain.counters import WINDOWS, window_of
from controlplane.domain.errors import InvalidError, OverloadedError
from controlplane.domain.limits import LimitUnit, LimitWindow
from controlplane.domain.names import SubjectKind
from controlplane.rpc.counters import (
    counter_from_proto,
    subject_from_proto,
    subject_kind_from_proto,
    unit_from_proto,
)
from controlplane.rpc.interception import Context
from controlplane.rpc.usage_records import is_request_id
from controlplane.store import ledger, usage_sums
from controlplane.store.database import Store
from controlplane.store.usage_totals import AMOUNT_INDEX, Sum
from controlplane.store.user_days import UsageTotals

MAX_ASKED: Final = 1_000
"""How many counters, requests or subjects one question names at most."""
MAX_PERIODS: Final = 100
BATCH_SUMS: Final = 1_000

# A caller waits for the answer; look-ups by index take milliseconds.
_DEADLINE_S: Final = 5.0
# Some hundred thousand sums, at the pace of whoever reads them; a connection is not lent for longer.
LIST_DEADLINE_S: Final = 30.0
# Batches that are made before somebody reads them: about 200 KB.
_READ_AHEAD: Final = 4
_LATELY: Final = timedelta(hours=24)

_WINDOWS: Final = {int(window): window for window in WINDOWS}
_DAY: Final = re.compile(r"\d{8}", re.ASCII)
_MONTH: Final = re.compile(r"\d{6}", re.ASCII)

_log: Final = structlog.get_logger(__name__)


class _Wanted:
    """Which sums a list has: what kinds of subjects are counted by, in periods of the same window."""

    def __init__(self) -> None:
        self.periods: dict[SubjectKind, set[str]] = defaultdict(set)
        # Subject kind and period → unit, window, and where its sum stands.
        self._units: dict[tuple[int, str], list[tuple[int, int, int]]] = defaultdict(list)

    def add(self, kind: SubjectKind, unit: LimitUnit, window: LimitWindow, period_id: str) -> None:
        """Want the sums of one unit; a repetition changes nothing."""
        self.periods[kind].add(period_id)
        units = self._units[int(kind), period_id]
        found = int(unit), int(window), AMOUNT_INDEX[unit]
        if found not in units:
            units.append(found)

    def sums_in(self, rows: Iterable[Sum]) -> list[pb.CounterSum]:
        """Return the sums that are wanted and not 0."""
        counter, counter_sum = limits_pb2.Counter, pb.CounterSum
        return [
            counter_sum(
                counter=counter(
                    subject_kind=row[1],  # type: ignore[arg-type]  # a number of the enum
                    subject_id=row[2],
                    unit=unit,  # type: ignore[arg-type]  # as above
                    window=window,  # type: ignore[arg-type]  # as above
                    period_id=row[0],
                    reset_generation=row[3],
                ),
                amount=amount,
            )
            for row in rows
            for unit, window, index in self._units[row[1], row[0]]
            if (amount := cast("int", row[index]))
        ]


class UsageSumServicer(pb_grpc.UsageServiceServicer):
    """Answers questions of data planes from the ledger."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def GetUserUsage(
        self, request: pb.GetUserUsageRequest, _context: Context
    ) -> pb.UserUsage:
        """Return what a user used, by the ledger."""
        is_day = _DAY.fullmatch(request.usage_day) and _MONTH.fullmatch(request.usage_month)
        if not is_day or "\0" in request.user_id:
            raise InvalidError("a day is 20261121 and a month is 202611", field="usage_day")
        async with self._reading(_DEADLINE_S) as session:
            found = await ledger.user_usage(
                session,
                request.user_id,
                usage_day=request.usage_day,
                usage_month=request.usage_month,
                since=self._store.clock() - _LATELY,
            )
        return pb.UserUsage(
            total=totals_to_proto(found.total),
            month=totals_to_proto(found.month),
            day=totals_to_proto(found.day),
            last_24h=totals_to_proto(found.lately),
        )

    async def SumUsage(self, request: pb.SumUsageRequest, _context: Context) -> pb.SumUsageResponse:
        """Return what the ledger says of counters, all of one instant."""
        _check_size(len(request.counters), MAX_ASKED, field="counters")
        counters = [
            counter_from_proto(each, field=f"counters[{index}]")
            for index, each in enumerate(request.counters)
        ]
        async with self._reading(_DEADLINE_S) as session:
            return pb.SumUsageResponse(amounts=await usage_sums.amounts_of(session, counters))

    async def ListSums(
        self, request: pb.ListSumsRequest, _context: Context
    ) -> AsyncIterator[pb.ListSumsResponse]:
        """Send every sum that is wanted and not 0, all of one instant."""
        wanted = _wanted(request)
        _check_size(len(request.subjects), MAX_ASKED, field="subjects")
        subjects = [
            subject_from_proto(each.subject_kind, each.subject_id, field=f"subjects[{index}]")
            for index, each in enumerate(request.subjects)
        ]
        batches: asyncio.Queue[pb.ListSumsResponse | None] = asyncio.Queue()
        room = asyncio.Semaphore(_READ_AHEAD)
        reading = asyncio.create_task(self._read_sums(wanted, subjects, batches, room))
        # Looked at here too, because who asked may be gone: the failure is logged already.
        reading.add_done_callback(lambda task: task.cancelled() or task.exception())
        try:
            # No deadline of its own: who reads has one, and says that it ends.
            while (batch := await batches.get()) is not None:
                room.release()
                yield batch
            await reading
        finally:
            reading.cancel()

    async def _read_sums(
        self,
        wanted: _Wanted,
        subjects: Sequence[tuple[SubjectKind, str]],
        batches: asyncio.Queue[pb.ListSumsResponse | None],
        room: asyncio.Semaphore,
    ) -> None:
        """Put batches where there is room for them, and None at the end, however it ends.

        In a task of its own, so that a data plane that reads slowly, or not at all, keeps a connection to the database
        for `LIST_DEADLINE_S` at most.
        """
        try:
            async with self._reading(LIST_DEADLINE_S) as session:
                async for rows in usage_sums.list_sums(
                    session, periods=wanted.periods, subjects=subjects, size=BATCH_SUMS
                ):
                    sums = wanted.sums_in(rows)
                    for start in range(0, len(sums), BATCH_SUMS):
                        await room.acquire()
                        batches.put_nowait(
                            pb.ListSumsResponse(sums=sums[start : start + BATCH_SUMS])
                        )
        finally:
            batches.put_nowait(None)

    async def FindRecords(
        self, request: pb.FindRecordsRequest, _context: Context
    ) -> pb.FindRecordsResponse:
        """Return which of the requests the ledger has, in the order of the question."""
        _check_size(len(request.request_ids), MAX_ASKED, field="request_ids")
        for index, request_id in enumerate(request.request_ids):
            if not is_request_id(request_id):
                raise InvalidError("no id of a request", field=f"request_ids[{index}]")
        async with self._reading(_DEADLINE_S) as session:
            found = await ledger.find_requests(session, request.request_ids)
        return pb.FindRecordsResponse(
            request_ids=[each for each in request.request_ids if each in found]
        )

    @asynccontextmanager
    async def _reading(self, deadline_s: float) -> AsyncIterator[AsyncSession]:
        """Open a session for at most so long.

        Raises:
            OverloadedError: The database is away, or takes longer.
        """
        try:
            async with asyncio.timeout(deadline_s), self._store.reading() as session:
                yield session
        except (SQLAlchemyError, OSError, TimeoutError) as error:
            _log.error("ledger not read", error=type(error).__name__)
            raise OverloadedError("the ledger is away") from error


def totals_to_proto(totals: UsageTotals) -> pb.UsageTotals:
    """Encode sums."""
    return pb.UsageTotals(
        requests=totals.requests,
        input_tokens=totals.input_tokens,
        output_tokens=totals.output_tokens,
        charged_nanousd=totals.charged_nanousd,
    )


def _wanted(request: pb.ListSumsRequest) -> _Wanted:
    _check_size(len(request.kinds), MAX_PERIODS, field="kinds")
    _check_size(len(request.period_ids), MAX_PERIODS, field="period_ids")
    periods: dict[LimitWindow, set[str]] = {window: set() for window in WINDOWS}
    for index, period_id in enumerate(request.period_ids):
        of_period = window_of(period_id)
        if of_period is None:
            raise InvalidError(
                "a period is 20261121, 202611 or total", field=f"period_ids[{index}]"
            )
        periods[of_period].add(period_id)
    wanted = _Wanted()
    for index, each in enumerate(request.kinds):
        field = f"kinds[{index}]"
        kind = subject_kind_from_proto(each.subject_kind, field=field)
        unit = unit_from_proto(each.unit, field=field)
        window = _WINDOWS.get(int(each.window))
        if window is None:
            raise InvalidError("only day, month and total have sums", field=f"{field}.window")
        for period_id in periods[window]:
            wanted.add(kind, unit, window, period_id)
    return wanted


def _check_size(size: int, most: int, *, field: str) -> None:
    if size > most:
        raise InvalidError(f"there are at most {most}", field=field)
