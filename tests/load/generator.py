"""The load generator, a program: one JSON job on standard input, one JSON outcome on standard output.

Raw protocols on one event loop, one write and usually one read per answer: it has to be much
cheaper than what it measures, with which it may share its core with a mock and a Redis.
"""

import asyncio
import contextlib
import gc
import os
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Final, cast

import msgspec

from tests.load.answers import Answer, AnswerParser, MalformedAnswerError, event_count
from tests.load.figures import percentile
from tests.load.jobs import Job, Latencies, Outcome, Target
from tests.load.machine import core_busy_seconds, cpu_seconds

_CONNECT_DEADLINE_S: Final = 10.0
_SHOWN_BYTES: Final = 400
_STREAM_END: Final = b"data: [DONE]\n\n"


class Caller(asyncio.Protocol):
    """One connection to a target, with at most one request under way."""

    def __init__(
        self,
        number: int,
        target: Target,
        on_answer: Callable[["Caller", Answer, float], None],
        on_failure: Callable[[str], None],
    ) -> None:
        """Prepare a connection; `number` tells the job's targets apart."""
        self.number = number
        self.target = target
        self._request = target.request()
        self._on_answer = on_answer
        self._on_failure = on_failure
        self._parser = AnswerParser()
        self._sent_at = 0.0
        self._is_closing = False
        self.is_waiting = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the connection."""
        # A stream connection makes its protocol with such a transport, whatever the signature says.
        self._transport = cast(asyncio.Transport, transport)

    def send(self) -> None:
        """Send the request."""
        self.is_waiting = True
        self._sent_at = time.perf_counter()
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        """Take bytes; hand on the answer that they complete."""
        try:
            answer = self._parser.feed(data)
        except MalformedAnswerError as error:
            self._on_failure(f"a malformed answer: {error}")
            self.close()
            return
        if answer is None:
            return
        took_s = time.perf_counter() - self._sent_at
        if not self.is_waiting:
            self._on_failure("an answer that nobody asked for")
            return
        self.is_waiting = False
        self._on_answer(self, answer, took_s)

    def connection_lost(self, exc: Exception | None) -> None:
        """Report an end that this side did not choose."""
        if not self._is_closing:
            when = "before its answer" if self.is_waiting else "between requests"
            self._on_failure(f"a connection was closed {when}: {exc or 'end of file'}")

    @property
    def events_under_way(self) -> int:
        """Events of the answer under way that have arrived."""
        return self._parser.partial_events if self.target.answer_events else 0

    def close(self) -> None:
        """Close the connection."""
        self._is_closing = True
        self._transport.abort()


class Mark(msgspec.Struct, frozen=True):
    """The counters at one moment."""

    at: float
    answers: tuple[int, ...]
    events: int
    cpu_s: dict[str, float]
    core_busy_s: float


class Run:
    """One job under way."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._took_s: list[list[float]] = [[] for _ in job.targets]
        self._sent = [0 for _ in job.targets]
        self._events = 0
        self._failures: list[str] = []
        self._callers: list[Caller] = []
        self._is_stopping = False
        self._failed = asyncio.Event()
        self._idle = asyncio.Event()

    async def outcome(self) -> Outcome:
        """Do the job; what fails is part of the outcome."""
        try:
            await self._connect()
            self._begin()
            await self._unless_failed(self._job.warmup_s + self._job.ramp_s)
            begin = self._mark()
            await self._unless_failed(self._job.seconds)
            end = self._mark()
            await self._drain()
        finally:
            for caller in self._callers:
                caller.close()
        return self._outcome(begin, end)

    async def _connect(self) -> None:
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(_CONNECT_DEADLINE_S):
            for number, target in enumerate(self._job.targets):
                for _ in range(self._job.connections):
                    _, caller = await loop.create_connection(
                        partial(Caller, number, target, self._answered, self._failed_with),
                        target.host,
                        target.port,
                    )
                    self._callers.append(caller)

    def _begin(self) -> None:
        if self._job.takes_turns:
            self._next = {
                id(each): self._callers[(index + 1) % len(self._callers)]
                for index, each in enumerate(self._callers)
            }
            self._send(self._callers[0])
            return
        self._next = {id(each): each for each in self._callers}
        loop, step_s = asyncio.get_running_loop(), self._job.ramp_s / len(self._callers)
        for index, caller in enumerate(self._callers):
            loop.call_later(index * step_s, self._send, caller)

    def _send(self, caller: Caller) -> None:
        if not self._is_stopping:
            self._sent[caller.number] += 1
            caller.send()

    def _answered(self, caller: Caller, answer: Answer, took_s: float) -> None:
        wrong = wrong_in(answer, caller.target)
        if wrong:
            self._failed_with(wrong)
            return
        self._took_s[caller.number].append(took_s)
        self._events += caller.target.answer_events
        if self._is_stopping:
            if not any(each.is_waiting for each in self._callers):
                self._idle.set()
            return
        self._send(self._next[id(caller)])

    def _failed_with(self, text: str) -> None:
        self._is_stopping = True
        self._failures.append(text)
        self._failed.set()
        self._idle.set()

    async def _unless_failed(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._failed.wait(), seconds)

    async def _drain(self) -> None:
        """Let answers under way come in, so that nothing is cut."""
        self._is_stopping = True
        if not any(each.is_waiting for each in self._callers):
            return
        try:
            await asyncio.wait_for(self._idle.wait(), self._job.answer_deadline_s)
        except TimeoutError:
            waiting = sum(each.is_waiting for each in self._callers)
            deadline_s = self._job.answer_deadline_s
            self._failures.append(f"{waiting} requests without an answer after {deadline_s:g} s")

    def _mark(self) -> Mark:
        core = self._job.core
        watched = {**self._job.watched, "load": os.getpid()}
        return Mark(
            at=time.perf_counter(),
            answers=tuple(map(len, self._took_s)),
            events=self._events + sum(each.events_under_way for each in self._callers),
            cpu_s={name: cpu_seconds(pid) for name, pid in watched.items()},
            core_busy_s=0.0 if core is None else core_busy_seconds(core),
        )

    def _outcome(self, begin: Mark, end: Mark) -> Outcome:
        latencies = []
        for took_s, first, last in zip(self._took_s, begin.answers, end.answers, strict=True):
            window = sorted(took_s[first:last])
            if window:
                p50_s, p99_s = percentile(window, 50), percentile(window, 99)
                latencies.append(Latencies(len(window), p50_s * 1000, p99_s * 1000))
        return Outcome(
            seconds=end.at - begin.at,
            answers=sum(end.answers) - sum(begin.answers),
            sent=self._sent,
            events=end.events - begin.events,
            latencies=latencies,
            cpu_s={name: end.cpu_s[name] - begin.cpu_s[name] for name in end.cpu_s},
            core_busy_s=end.core_busy_s - begin.core_busy_s,
            failures=_distinct(self._failures),
        )


def wrong_in(answer: Answer, target: Target) -> str:
    """Return what is wrong with an answer; empty when it is right."""
    if answer.status != 200:
        seen = answer.body[:_SHOWN_BYTES].decode(errors="replace")
        return f"status {answer.status}: {seen}"
    if target.answer_events:
        events = event_count(answer.body)
        if events != target.answer_events or not answer.body.endswith(_STREAM_END):
            tail = answer.body[-_SHOWN_BYTES:].decode(errors="replace")
            return f"a stream of {events} events instead of {target.answer_events}: …{tail}"
    elif len(answer.body) != target.answer_bytes:
        seen = answer.body[:_SHOWN_BYTES].decode(errors="replace")
        return f"an answer of {len(answer.body)} bytes instead of {target.answer_bytes}: {seen}"
    return ""


def _distinct(failures: list[str]) -> list[str]:
    return list(dict.fromkeys(failures))[:5]


def main() -> None:
    """Do the job on standard input."""
    job = msgspec.json.decode(sys.stdin.buffer.read(), type=Job)
    # Nothing here makes cycles that matter in a minute, and a collection would be in the figures.
    gc.disable()
    try:
        outcome = asyncio.run(Run(job).outcome())
    except OSError as error:  # also what took too long
        sys.exit(f"cannot connect: {error or type(error).__name__}")
    sys.stdout.buffer.write(msgspec.json.encode(outcome) + b"\n")


if __name__ == "__main__":
    main()
