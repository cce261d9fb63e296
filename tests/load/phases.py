"""What is measured, in order: the harness itself, then the data plane."""

import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from typing import Final, Protocol

import msgspec

from tests.load.calls import EVENTS, probed, stream_body, whole_body
from tests.load.figures import SATURATED_SHARE, Figure, per_unit_us
from tests.load.jobs import Job, Outcome, Target, target
from tests.load.machine import cpu_seconds, resident_bytes
from tests.load.redis_work import RedisWork, redis_work
from tests.load.stack import ROOT, Addresses, BenchError

CONNECTIONS: Final = 64
PACE_MS: Final = 20
_MB: Final = 1_000_000
# What a generator takes beyond its window: to start, to connect, and for the last answers.
_GENERATOR_PATIENCE_S: Final = 60.0
_QUIET_SHARE: Final = 0.05
_QUIET_POLL_S: Final = 0.5
_QUIET_DEADLINE_S: Final = 60.0
# More than this on the data plane's core is somebody else's work, which the figures suffer from.
DISTURBED_SHARE: Final = 0.05

Progress = Callable[[str], None]


class Placement(msgspec.Struct, frozen=True):
    """Where processes run; None for both on a machine with one core."""

    data_plane_core: int | None
    other_core: int | None


class Credentials(Protocol):
    """Who calls: headers, by key and by device."""

    by_key: Mapping[str, str]
    by_device: Mapping[str, str]


class Bench:
    """All phases on one running stack."""

    def __init__(
        self,
        addresses: Addresses,
        customer: Credentials,
        placement: Placement,
        seconds: float,
        warmup_s: float,
        progress: Progress,
    ) -> None:
        """Prepare; `seconds` is the length of each phase's window."""
        self._addresses = addresses
        self._pid = addresses.pids.dataplanes[0]
        self._customer = customer
        self._placement = placement
        self._seconds = seconds
        self._warmup_s = warmup_s
        self._progress = progress
        self._json_ceiling = self._stream_ceiling = 0.0
        self.sent = 0

    def ceilings(self) -> list[Figure]:
        """Measure the harness: load to mock, without the data plane."""
        direct = self._direct(whole_body(self._addresses.mock_url))
        json = self._drive("the harness's ceiling for JSON", direct)
        stream = self._drive("the harness's ceiling for streams", self._direct(stream_body()))
        self._json_ceiling, self._stream_ceiling = json.answers_per_s, stream.answers_per_s
        return [
            Figure(f"ceiling: requests/s at {CONNECTIONS} connections", self._json_ceiling, "/s"),
            Figure(f"ceiling: {EVENTS}-event streams/s", self._stream_ceiling, "/s"),
        ]

    def memory(self, name: str) -> Figure:
        """Return the data plane's memory now."""
        return Figure(name, resident_bytes(self._pid) / _MB, "MB")

    def requests(self) -> list[Figure]:
        """Measure small JSON answers at saturation."""
        proxied = self._proxied(whole_body(self._addresses.mock_url))
        outcome, redis = self._drive_counting_redis("requests/s", proxied)
        seen, share = outcome.latencies[0], outcome.cpu_s["data plane"] / outcome.seconds
        count = outcome.answers
        return [
            Figure(
                f"requests/s at {CONNECTIONS} connections",
                outcome.answers_per_s,
                "/s",
                self._json_ceiling,
                self._note(outcome),
            ),
            Figure(
                "data plane CPU per request", per_unit_us(outcome.cpu_s["data plane"], count), "µs"
            ),
            Figure("data plane busy", share * 100, "%"),
            Figure(f"p50 at {CONNECTIONS} connections", seen.p50_ms, "ms"),
            Figure(f"p99 at {CONNECTIONS} connections", seen.p99_ms, "ms"),
            Figure("Redis CPU per request", per_unit_us(redis.cpu_s, outcome.sent[0]), "µs"),
            Figure("of which in scripts", per_unit_us(redis.script_s, outcome.sent[0]), "µs"),
            Figure("requests per script call", outcome.sent[0] / max(1, redis.script_calls), ""),
            Figure(
                "control plane CPU per request",
                per_unit_us(outcome.cpu_s["control plane"], count),
                "µs",
            ),
        ]

    def added_latency(self) -> list[Figure]:
        """Measure one connection, a direct request and a proxied one in turns."""
        body = whole_body(self._addresses.mock_url)
        outcome = self._drive(
            "added latency", self._direct(body), self._proxied(body), connections=1
        )
        direct, proxied = outcome.latencies
        note = self._disturbance(outcome)
        return [
            Figure("added p50 at one connection", proxied.p50_ms - direct.p50_ms, "ms", note=note),
            Figure("added p99 at one connection", proxied.p99_ms - direct.p99_ms, "ms", note=note),
        ]

    def device_calls(self) -> Figure:
        """Measure one connection, a call by key and one by device in turns, with as many layers."""
        body = whole_body(self._addresses.mock_url)
        by_key, by_device = self._proxied(body), self._proxied(body, self._customer.by_device)
        outcome = self._drive("calls by device", by_key, by_device, connections=1)
        key, device = outcome.latencies
        added_us = (device.p50_ms - key.p50_ms) * 1000
        note = self._disturbance(outcome)
        return Figure("a call by device, more than one by key, p50", added_us, "µs", note=note)

    def streams(self) -> list[Figure]:
        """Measure streams whose events come all at once."""
        proxied = self._proxied(stream_body())
        outcome = self._drive("streams/s", proxied)
        cpu_s = outcome.cpu_s["data plane"]
        return [
            Figure(
                f"{EVENTS}-event streams/s at {CONNECTIONS} connections",
                outcome.answers_per_s,
                "/s",
                self._stream_ceiling,
                self._note(outcome),
            ),
            Figure("data plane CPU per stream", per_unit_us(cpu_s, outcome.answers), "µs"),
            Figure("data plane CPU per event, unpaced", per_unit_us(cpu_s, outcome.events), "µs"),
        ]

    def paced_streams(self) -> list[Figure]:
        """Measure streams whose events come one by one, as providers send them."""
        proxied = self._proxied(stream_body(PACE_MS))
        nominal_s = EVENTS * PACE_MS / 1000
        outcome = self._drive("paced streams", proxied, ramp_s=nominal_s)
        longer = outcome.latencies[0].p99_ms / (nominal_s * 1000) - 1
        cpu_s = outcome.cpu_s["data plane"]
        return [
            Figure(
                f"data plane CPU per event, paced {PACE_MS} ms",
                per_unit_us(cpu_s, outcome.events),
                "µs",
                note=f"{outcome.events / outcome.seconds:,.0f} events/s on {CONNECTIONS} streams",
            ),
            Figure("p99 length of a paced stream", longer * 100, "% longer"),
        ]

    def _direct(self, body: dict[str, object]) -> Target:
        return probed(target(self._addresses.mock_url, body))

    def _proxied(
        self, body: dict[str, object], credentials: Mapping[str, str] | None = None
    ) -> Target:
        self.sent += 1
        of_whom = self._customer.by_key if credentials is None else credentials
        return probed(target(self._addresses.base_url, body, of_whom))

    def _drive_counting_redis(self, name: str, proxied: Target) -> tuple[Outcome, RedisWork]:
        before = redis_work(self._addresses.redis_url)
        outcome = self._drive(name, proxied)
        return outcome, redis_work(self._addresses.redis_url).since(before)

    def _drive(
        self, name: str, *targets: Target, connections: int = CONNECTIONS, ramp_s: float = 0.0
    ) -> Outcome:
        self._quiet()
        self._progress(f"measuring {name}, {self._seconds:g} s")
        pids = self._addresses.pids
        job = Job(
            targets=targets,
            connections=connections,
            takes_turns=len(targets) > 1,
            seconds=self._seconds,
            warmup_s=self._warmup_s,
            ramp_s=ramp_s,
            watched={"data plane": self._pid, "control plane": pids.controlplane},
            core=self._placement.data_plane_core,
        )
        outcome = generated(job)
        if outcome.failures:
            raise BenchError(f"{name}: " + "\n  ".join(("it went wrong:", *outcome.failures)))
        if len(outcome.latencies) != len(targets):
            raise BenchError(f"{name}: no answer came in {outcome.seconds:.1f} s")
        for each, sent in zip(targets, outcome.sent, strict=True):
            self.sent += sent if each.credentials else 0
        return outcome

    def _quiet(self) -> None:
        """Wait until what the last phase left behind, such as its usage reports, is done."""
        pids = (self._pid, self._addresses.pids.controlplane)
        ends_at = time.monotonic() + _QUIET_DEADLINE_S
        while time.monotonic() < ends_at:
            before = sum(map(cpu_seconds, pids))
            time.sleep(_QUIET_POLL_S)
            if sum(map(cpu_seconds, pids)) - before < _QUIET_SHARE * _QUIET_POLL_S:
                return
        self._progress("the programs do not come to rest; going on")

    def _note(self, outcome: Outcome) -> str:
        """Return what makes a rate less than what the data plane could do."""
        share = outcome.cpu_s["data plane"] / outcome.seconds
        limit = "" if share >= SATURATED_SHARE else f"the data plane was {share:.0%} busy"
        return "; ".join(filter(None, (limit, self._disturbance(outcome))))

    def _disturbance(self, outcome: Outcome) -> str:
        if self._placement.data_plane_core is None:
            return ""
        others_s = outcome.core_busy_s - outcome.cpu_s["data plane"]
        share = others_s / outcome.seconds
        return f"others took {share:.0%} of its core" if share > DISTURBED_SHARE else ""


def generated(job: Job) -> Outcome:
    """Do a job in a process of its own.

    Raises:
        BenchError: The generator failed; the text says how.
    """
    limit_s = job.warmup_s + job.ramp_s + job.seconds + job.answer_deadline_s
    # The key goes through a pipe: every user of the machine may read argument vectors.
    done = subprocess.run(
        [sys.executable, "-m", "tests.load.generator"],
        input=msgspec.json.encode(job),
        cwd=ROOT,
        capture_output=True,
        check=False,
        timeout=limit_s + _GENERATOR_PATIENCE_S,
    )
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip()
        raise BenchError(f"the load generator failed: {said}")
    return msgspec.json.decode(done.stdout, type=Outcome)
