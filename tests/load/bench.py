"""`poe bench`: start a stack, measure it, print the figures, leave nothing behind.

    python -m tests.load.bench [--seconds 10 | --quick] [--json] [--write]

The data plane has one core to itself; load, mock, Redis and control plane share another one.
"""

import argparse
import os
import platform
import signal
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Final

import msgspec
import redis

from tests.load.configuration_phases import ConfigurationBench
from tests.load.customer import Customer
from tests.load.figures import Figure, Report, as_json, as_line, as_markdown
from tests.load.limiter_phases import LimiterBench
from tests.load.machine import commit, cpu_model, pin, usable_cores
from tests.load.phases import Bench, Placement
from tests.load.redis_work import server_pid
from tests.load.stack import ROOT, Addresses, BenchError, Stack

_BENCHMARKS: Final = ROOT / "docs" / "benchmarks.md"
_HEADING: Final = """\
# Benchmarks

Written by `poe bench --write`, the newest run last. Every request has a key, all limit layers, a
hard budget, settlement and usage reporting. Compare runs of one machine; CPU microseconds are
steadier than rates. A rate above 70 % of what the harness reaches without the data plane is void.

"""
_QUICK_S: Final = 2.0
_LONGEST_WARMUP_S: Final = 2.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; return the exit code: 0 when every answer was right."""
    options = _parser().parse_args(arguments)
    seconds = _QUICK_S if options.quick else options.seconds
    if not 0.5 <= seconds <= 600:
        _parser().error("--seconds is from 0.5 to 600")
    signal.signal(signal.SIGTERM, _terminate)
    placement = placement_here()
    with Stack() as stack:
        try:
            report = measured(stack, placement, seconds, is_json=options.json)
        except (BenchError, OSError, redis.RedisError, subprocess.TimeoutExpired) as error:
            _say(f"{stack.log_tail()}\nbench: {error}")
            return 1
        except KeyboardInterrupt:
            _say("stopping")
            return 130
    if options.json:
        sys.stdout.buffer.write(as_json(report) + b"\n")
    if options.write:
        write(report, _BENCHMARKS)
    return 0


def measured(stack: Stack, placement: Placement, seconds: float, *, is_json: bool) -> Report:
    """Measure everything and return the report; unless `is_json`, print figures as they come.

    Raises:
        BenchError: A program failed, or an answer was wrong.
    """
    figures: list[Figure] = []

    def add(*more: Figure) -> None:
        figures.extend(more)
        if not is_json:
            sys.stdout.write("".join(as_line(each) + "\n" for each in more))
            sys.stdout.flush()

    starts = _started_twice(stack)
    customer = Customer(stack)
    report = _report(placement, seconds, customer.layers)
    if not is_json:
        sys.stdout.write(f"{report.title}\n{report.placement}.\n")
    if stack.addresses is None:
        raise BenchError("the stack does not run")
    arrange(stack.addresses, placement)
    stack.wait_ready()
    warmup_s = min(_LONGEST_WARMUP_S, seconds / 4)
    bench = Bench(stack.addresses, customer, placement, seconds, warmup_s, _say)
    add(*bench.ceilings(), *starts, bench.memory("memory, idle"))
    add(*bench.added_latency())
    add(bench.device_calls())
    add(*bench.requests())
    add(*bench.streams())
    add(*bench.paced_streams())
    add(bench.memory("memory, after"))
    _say(f"waiting until the ledger has all {bench.sent:,} requests")
    add(Figure("ledger complete after the load ended", customer.recorded(bench.sent), "s"))
    # Nothing else runs now.
    stack.stop()
    limiter = LimiterBench(placement, seconds, warmup_s, _say)
    for phase in (limiter.latency, limiter.one_by_one, limiter.in_batches, limiter.memory):
        add(*phase())
    configuration = ConfigurationBench(placement, _say, is_quick=seconds <= _QUICK_S)
    add(*configuration.applying())
    add(*configuration.propagation())
    return msgspec.structs.replace(report, figures=tuple(figures))


def write(report: Report, path: Path) -> None:
    """Append a run to the file of runs, which is begun if it is not there."""
    path.parent.mkdir(exist_ok=True)
    is_new = not path.exists()
    with path.open("a", encoding="utf-8") as file:
        file.write((_HEADING if is_new else "\n") + as_markdown(report))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="poe bench", description="Measure a data plane.")
    parser.add_argument("--seconds", type=float, default=10.0, help="of each phase (10)")
    parser.add_argument("--quick", action="store_true", help="2 s a phase: a rough idea")
    parser.add_argument("--json", action="store_true", help="print one JSON document instead")
    parser.add_argument("--write", action="store_true", help="append to docs/benchmarks.md")
    return parser


def _started_twice(stack: Stack) -> list[Figure]:
    """Start the stack, and again on the same files: the second start is the warm one."""
    _say("starting the stack, twice")
    first_s = stack.start()
    stack.stop()
    return [
        Figure("`tollkeeper dev` ready, first start", first_s, "s"),
        Figure("`tollkeeper dev` ready, warm", stack.start(), "s"),
    ]


def placement_here() -> Placement:
    """Choose a core for the data plane and one for everything else, if there are two."""
    cores = usable_cores()
    return Placement(cores[0], cores[1]) if len(cores) > 1 else Placement(None, None)


def arrange(addresses: Addresses, placement: Placement) -> None:
    """Put the data plane alone on its core, and all others, with this process, on theirs."""
    if placement.data_plane_core is None or placement.other_core is None:
        _say("this machine has one core: everything shares it, and rates are not per core")
        return
    pids = addresses.pids
    redis_server = server_pid(addresses.redis_url)
    for pid in (pids.dev, pids.controlplane, pids.mock, pids.redis, redis_server, os.getpid()):
        pin(pid, placement.other_core)
    pin(pids.dataplanes[0], placement.data_plane_core)


def _report(placement: Placement, seconds: float, layers: int) -> Report:
    pinned = (
        "The data plane alone on one core; mock, Redis, control plane and load on another"
        if placement.data_plane_core is not None
        else "Everything on one core: rates are not per core of a data plane"
    )
    return Report(
        date=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        commit=commit(ROOT),
        python=platform.python_version(),
        cpu=cpu_model(),
        cores=len(usable_cores()),
        placement=pinned,
        seconds_per_phase=seconds,
        layers=layers,
        figures=(),
    )


def _terminate(number: int, frame: FrameType | None) -> None:
    """End as an exception does, so that everything is stopped."""
    raise SystemExit(128 + number)


def _say(line: str) -> None:
    """Tell the user what is going on; figures alone go to standard output."""
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
