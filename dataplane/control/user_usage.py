"""What a user used, asked of the control plane's ledger.

Many callers of one user may look at once, and often: they share one question, and its answer for a
second.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import grpc
import grpc.aio
import structlog
from tollkeeper.usage.v1 import usage_service_pb2 as pb
from tollkeeper.usage.v1 import usage_service_pb2_grpc as pb_grpc

from dataplane.control.channels import LOOPBACK, ChannelCache, Channels, credentials_of
from dataplane.domain.refusals import Reason, Refusal

DEADLINE_SECONDS: Final = 2.0
# Figures of a ledger are seconds old anyway; a dashboard that asks all the time costs one call.
FRESH_SECONDS: Final = 1.0
MAX_REMEMBERED: Final = 1_000
MAX_CALLS_AT_ONCE: Final = 20
# Beyond this nobody could be answered within the deadline.
MAX_WAITING: Final = 1_000
_RETRY_AFTER_SECONDS: Final = 5

_log: Final = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class UsageTotals:
    """Sums over requests that went upstream; `charged_nanousd` is what counts against budgets."""

    requests: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    charged_nanousd: int = 0


@dataclass(frozen=True, slots=True)
class UserUsage:
    """What a user used, by the ledger: what no data plane has delivered yet is missing."""

    total: UsageTotals
    month: UsageTotals
    day: UsageTotals
    last_24h: UsageTotals


@dataclass(frozen=True, slots=True)
class _Question:
    user_id: str
    usage_day: str
    usage_month: str


class UserUsageClient:
    """Asks `UsageService.GetUserUsage`; belongs to one event loop.

    Control planes are asked in turn: one that does not answer is left for the next.
    """

    def __init__(
        self,
        addresses: Sequence[str],
        node_token: str,
        clock_seconds: Callable[[], float] = time.monotonic,
        channels: Channels = LOOPBACK,
    ) -> None:
        """Prepare; connections are opened by the first question.

        Args:
            addresses: Control planes, `host:port`.
            node_token: What this node proves itself with.
            clock_seconds: Never goes back; says how old an answer is.
            channels: How they are reached.

        Raises:
            ValueError: An address cannot be used, or there is none.
        """
        if not addresses:
            raise ValueError("usage needs the address of a control plane")
        for address in addresses:
            channels.check(address)
        self._addresses = tuple(addresses)
        self._metadata = credentials_of(node_token)
        self._clock_seconds = clock_seconds
        self._channels = ChannelCache(channels)
        self._preferred = 0
        self._calls = asyncio.Semaphore(MAX_CALLS_AT_ONCE)
        self._asked: dict[_Question, asyncio.Task[UserUsage | None]] = {}
        # In the order of their age, which is that of their end.
        self._answers: dict[_Question, tuple[float, UserUsage]] = {}
        self._is_away = False
        self._is_closed = False

    async def usage_of(self, user_id: str, usage_day: str, usage_month: str) -> UserUsage:
        """Return what a user used; at most a second old, and within two seconds.

        A caller that is cancelled leaves the question to those who wait for it too.

        Args:
            user_id: Whose.
            usage_day: The day that counts as today, `20261121`.
            usage_month: The month that counts as this one, `202611`.

        Raises:
            Refusal: CONTROL_PLANE_UNAVAILABLE: no control plane answered, or too many are waiting.
        """
        question = _Question(user_id, usage_day, usage_month)
        self._forget_old()
        known = self._answers.get(question)
        if known is not None:
            return known[1]
        task = self._asked.get(question)
        if task is None:
            if self._is_closed or len(self._asked) >= MAX_WAITING:
                raise _unavailable()
            task = self._asked[question] = asyncio.create_task(
                self._answer(question), name="user-usage"
            )
        # Not awaited itself: its end by `aclose` is no cancellation of its askers.
        await asyncio.wait({task})
        usage = None if task.cancelled() else task.result()
        if usage is None:
            raise _unavailable()
        return usage

    async def aclose(self) -> None:
        """Give up the questions under way and close the connections; later ones are refused."""
        self._is_closed = True
        tasks = list(self._asked.values())
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        await self._channels.aclose()

    async def _answer(self, question: _Question) -> UserUsage | None:
        """Ask the ledger; None when it could not be asked in time."""
        try:
            async with asyncio.timeout(DEADLINE_SECONDS), self._calls:
                usage = await self._ask_in_turn(question)
        except TimeoutError:
            self._note_away("deadline")
            return None
        finally:
            del self._asked[question]
        if usage is not None:
            self._answers[question] = (self._clock_seconds() + FRESH_SECONDS, usage)
            if len(self._answers) > MAX_REMEMBERED:
                del self._answers[next(iter(self._answers))]
        return usage

    async def _ask_in_turn(self, question: _Question) -> UserUsage | None:
        first, code = self._preferred, ""
        for step in range(len(self._addresses)):
            place = (first + step) % len(self._addresses)
            usage = None
            try:
                usage = await self._ask(self._addresses[place], question)
            except grpc.aio.AioRpcError as error:
                code = error.code().name
            finally:
                # One that hangs until the deadline is left too, by all its askers together once.
                if usage is None and self._preferred == place:
                    self._preferred = (place + 1) % len(self._addresses)
            if usage is not None:
                self._note_answer()
                return usage
        self._note_away(code)
        return None

    async def _ask(self, address: str, question: _Question) -> UserUsage:
        channel = self._channels.to(address)
        request = pb.GetUserUsageRequest(
            user_id=question.user_id,
            usage_day=question.usage_day,
            usage_month=question.usage_month,
        )
        answer = await pb_grpc.UsageServiceStub(channel).GetUserUsage(
            request, metadata=self._metadata, timeout=DEADLINE_SECONDS
        )
        return UserUsage(
            total=_totals(answer.total),
            month=_totals(answer.month),
            day=_totals(answer.day),
            last_24h=_totals(answer.last_24h),
        )

    def _forget_old(self) -> None:
        now = self._clock_seconds()
        while self._answers:
            oldest = next(iter(self._answers))
            if self._answers[oldest][0] > now:
                return
            del self._answers[oldest]

    def _note_away(self, code: str) -> None:
        # Once per outage, not once per caller.
        if not self._is_away:
            self._is_away = True
            _log.warning("user_usage_unavailable", code=code)

    def _note_answer(self) -> None:
        if self._is_away:
            self._is_away = False
            _log.info("user_usage_available")


def _totals(totals: pb.UsageTotals) -> UsageTotals:
    return UsageTotals(
        requests=totals.requests,
        input_tokens=totals.input_tokens,
        output_tokens=totals.output_tokens,
        charged_nanousd=totals.charged_nanousd,
    )


def _unavailable() -> Refusal:
    return Refusal(
        Reason.CONTROL_PLANE_UNAVAILABLE,
        "Usage cannot be read right now.",
        retry_after_seconds=_RETRY_AFTER_SECONDS,
    )
