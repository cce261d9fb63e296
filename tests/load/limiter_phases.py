"""What the limiter alone costs and carries, on a server of its own, with nothing else running."""

import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from dataplane import embedded_redis
from tests.load.admits import AdmitJob, AdmitOutcome
from tests.load.figures import Figure, per_unit_us
from tests.load.footprint import LAYERS, footprint
from tests.load.machine import pin
from tests.load.phases import DISTURBED_SHARE, Placement
from tests.load.stack import ROOT, BenchError

RATE: Final = 1_000.0
_CALLERS: Final = 64
_USERS: Final = 10_000
# What a process takes beyond its window: to start, and to connect.
_PATIENCE_S: Final = 30.0
_MOST_S: Final = 10.0


class LimiterBench:
    """All phases on the limiter; each starts a server that nobody else has."""

    def __init__(
        self,
        placement: Placement,
        seconds: float,
        warmup_s: float,
        progress: Callable[[str], None],
    ) -> None:
        """Prepare; `seconds` is the length of each phase's window."""
        self._placement = placement
        self._seconds = min(seconds, _MOST_S)
        self._warmup_s = warmup_s
        self._progress = progress

    def latency(self) -> list[Figure]:
        """Measure what a request waits for when others come at their own pace."""
        name = f"{RATE:,.0f}/s"
        outcome = self._drive(f"admits at {name}", rate=RATE)
        note = self._note(outcome)
        return [
            Figure(f"admit p50 at {name}", outcome.p50_ms, "ms", note=note),
            Figure(f"admit p99 at {name}", outcome.p99_ms, "ms", note=note),
            Figure(f"limiter CPU per request at {name}", _cpu_us(outcome), "µs", note=note),
            *_redis_figures(f"at {name}", outcome),
        ]

    def one_by_one(self) -> list[Figure]:
        """Measure a caller alone: each admit and each settle is a call of the script."""
        return _redis_figures("one by one", self._drive("admits one by one", callers=1))

    def in_batches(self) -> list[Figure]:
        """Measure as many requests as the limiter carries, in batches as they occur."""
        outcome = self._drive("admits in batches", callers=_CALLERS)
        name = f"{_CALLERS} callers"
        return [
            Figure(
                f"admits/s of {name}",
                outcome.admits / outcome.seconds,
                "/s",
                note=self._note(outcome),
            ),
            *_redis_figures(f"with {name}", outcome),
        ]

    def memory(self) -> list[Figure]:
        """Measure users who called in every slot of the last minute, with layers of their own."""
        self._progress(f"measuring the memory of {_USERS:,} users")
        with _Server(self._placement) as url:
            found = footprint(url, _USERS)
        name = f"Redis memory per active user, {LAYERS} layers"
        return [
            Figure(name, found.counters, "B", note="keys and what they hold"),
            Figure("… with the server's tables", found.server, "B"),
        ]

    def _drive(self, name: str, *, rate: float | None = None, callers: int = 1) -> AdmitOutcome:
        self._progress(f"measuring {name}, {self._seconds:g} s")
        with _Server(self._placement) as url:
            outcome = admitted(
                AdmitJob(
                    redis_url=url,
                    seconds=self._seconds,
                    warmup_s=self._warmup_s,
                    rate=rate,
                    callers=callers,
                    core=self._placement.data_plane_core,
                )
            )
        if not outcome.admits:
            raise BenchError(f"{name}: nothing was admitted")
        return outcome

    def _note(self, outcome: AdmitOutcome) -> str:
        refused = f"{outcome.unavailable:,} unavailable" if outcome.unavailable else ""
        share = (outcome.core_busy_s - outcome.cpu_s) / outcome.seconds
        others = f"others took {share:.0%} of its core" if share > DISTURBED_SHARE else ""
        return "; ".join(filter(None, (refused, others)))


class _Server:
    """A server in a folder of its own, on the core of everything but data planes."""

    def __init__(self, placement: Placement) -> None:
        self._core = placement.other_core

    def __enter__(self) -> str:
        self._folder = tempfile.TemporaryDirectory(prefix="tollkeeper-bench-redis-")
        try:
            self._redis = embedded_redis.start(Path(self._folder.name))
        except embedded_redis.EmbeddedRedisError as error:
            self._folder.cleanup()
            raise BenchError(str(error)) from error
        if self._core is not None:
            pin(self._redis.process.pid, self._core)
        return self._redis.url

    def __exit__(self, *_: object) -> None:
        self._redis.stop()
        self._folder.cleanup()


def admitted(job: AdmitJob) -> AdmitOutcome:
    """Do a job in a process of its own.

    Raises:
        BenchError: It failed; the text says how.
    """
    done = subprocess.run(
        [sys.executable, "-m", "tests.load.admits"],
        # Through a pipe: the URL holds a password, and everybody may read argument vectors.
        input=msgspec.json.encode(job),
        cwd=ROOT,
        capture_output=True,
        check=False,
        timeout=job.warmup_s + job.seconds + _PATIENCE_S,
    )
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip()
        raise BenchError(f"the load on the limiter failed: {said}")
    return msgspec.json.decode(done.stdout, type=AdmitOutcome)


def _redis_figures(name: str, outcome: AdmitOutcome) -> list[Figure]:
    """Return what admission and settlement of one request cost the server."""
    redis, count = outcome.redis, outcome.admits
    calls = redis.script_calls / count
    return [
        Figure(
            f"Redis CPU, 13 layers, {name}",
            per_unit_us(redis.cpu_s, count),
            "µs",
            note=f"admit and settle; {calls:.2f} script calls per request",
        ),
        Figure("of which in scripts", per_unit_us(redis.script_s, count), "µs"),
    ]


def _cpu_us(outcome: AdmitOutcome) -> float:
    return per_unit_us(outcome.cpu_s, outcome.admits)
