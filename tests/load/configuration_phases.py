"""What configuration costs: taking in large ones, and the way of changes to many data planes."""

import asyncio
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final

from tollkeeper.admin.v1 import api_key_service_pb2 as key_pb

from controlplane.store import tables
from controlplane.store.database import Store
from tests.configuration.large_database import prepared
from tests.configuration.nodes import NodesProgram, nodes
from tests.distribution.process import Program, environment_of, program
from tests.load.figures import Figure, percentile, rounded
from tests.load.machine import pin
from tests.load.phases import Placement
from tests.load.stack import ROOT, BenchError
from tests.rpc.admin_api import AdminApi

SIZES: Final = (10_000, 100_000, 1_000_000)
FLEETS: Final = (10, 50)
# Propagation is measured on a configuration of this size, so that fifty nodes fit on one machine.
_FLEET_KEYS: Final = 10_000
_CHANGES: Final = 50
_NODES_A_PROCESS: Final = 10
_MIB: Final = 1024.0
_PATIENCE_S: Final = 900.0
# Upper bounds, in milliseconds.
_BUCKETS: Final = (10, 25, 50, 100, 250, 500, 1_000)
_NAMES: Final = {1: "first", 2: "one_key", 3: "all_changed"}


class ConfigurationBench:
    """All phases of configuration; each starts the programs that it needs."""

    def __init__(
        self, placement: Placement, progress: Callable[[str], None], *, is_quick: bool = False
    ) -> None:
        """Prepare; a quick one leaves the largest of everything out."""
        self._placement = placement
        self._progress = progress
        self._sizes = SIZES[:-1] if is_quick else SIZES
        self._fleets = FLEETS[:-1] if is_quick else FLEETS

    def applying(self) -> list[Figure]:
        """Measure a node that takes in configurations: how long, how much memory, how late its loop is."""
        figures: list[Figure] = []
        for keys in self._sizes:
            self._progress(f"measuring a configuration of {keys:,} keys")
            figures += _apply_figures(keys, *_applied(keys, self._placement))
        return figures

    def propagation(self) -> list[Figure]:
        """Measure the way of a revocation and of a change to every node of a fleet."""
        figures: list[Figure] = []
        for count in self._fleets:
            self._progress(f"measuring the way of changes to {count} nodes")
            revoked_ms, changed_ms = asyncio.run(_propagated(count))
            figures += _latency_figures(f"revocation → {count} nodes", revoked_ms)
            figures += _latency_figures(f"change → {count} nodes", changed_ms)
        return figures


def _applied(keys: int, placement: Placement) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Let a node take in three transfers; return how long each took, and what the node said."""
    source = _started("tests.load.configuration_source", str(keys))
    try:
        port = _line_of(source)["port"]
        probe = _started("tests.load.configuration_probe", str(port))
        try:
            if placement.data_plane_core is not None and placement.other_core is not None:
                pin(probe.pid, placement.data_plane_core)
                pin(source.pid, placement.other_core)
            said = [_line_of(probe) for _ in range(1 + len(_NAMES))]
            outcome = _line_of(source)
        finally:
            _ended(probe)
    finally:
        _ended(source)
    if outcome["refused"]:
        raise BenchError(f"a node refused {keys:,} keys: {outcome['refused']}")
    return outcome["took_s"], said


def _apply_figures(
    keys: int, took_s: dict[str, float], said: list[dict[str, Any]]
) -> Iterable[Figure]:
    before, *after = said
    held = {_NAMES[each["revision"]]: each for each in after}
    own_kib = held["first"]["rss_kib"] - before["rss_kib"]
    peak_kib = held["all_changed"]["peak_kib"] - before["rss_kib"]
    name = f"{keys:,} keys"
    yield Figure(f"{name}: first applied after", took_s["first"], "s", note=_lag(held["first"]))
    yield Figure(
        f"{name}: one key changed after", took_s["one_key"] * 1000, "ms", note=_lag(held["one_key"])
    )
    yield Figure(
        f"{name}: all changed after", took_s["all_changed"], "s", note=_lag(held["all_changed"])
    )
    yield Figure(f"{name}: memory of a node", own_kib / _MIB, "MiB")
    yield Figure(f"{name}: most while all changes", peak_kib / own_kib, "times that")


def _lag(said: dict[str, Any]) -> str:
    return f"event loop held {rounded(said['longest_ms'])} ms at most"


def _started(module: str, argument: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", module, argument],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        encoding="utf-8",
    )


def _line_of(process: "subprocess.Popen[str]") -> dict[str, Any]:
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise BenchError("a program of the configuration benchmark ended early")
    found: dict[str, Any] = json.loads(line)
    return found


def _ended(process: "subprocess.Popen[str]") -> None:
    process.kill()
    process.communicate(timeout=_PATIENCE_S)


async def _propagated(count: int) -> tuple[list[float], list[float]]:
    """Revoke keys and make organizations; return how long each node took for each, in milliseconds."""
    with tempfile.TemporaryDirectory(prefix="tollkeeper-bench-config-") as folder:
        url = f"sqlite+aiosqlite:///{folder}/large.sqlite"
        environment = environment_of(Path(folder) / "controlplane")
        environment["TOLLKEEPER_DATABASE_URL"] = url
        revision = await prepared(url, _FLEET_KEYS)
        Path(folder, "controlplane").mkdir()
        async with program(environment, start_s=60.0) as control_plane:
            return await _with_nodes(control_plane, url, count, revision, [])


async def _with_nodes(
    control_plane: Program, url: str, count: int, revision: int, started: list[NodesProgram]
) -> tuple[list[float], list[float]]:
    running = sum(len(each.names) for each in started)
    if running < count:
        names = [f"node-{running + number}" for number in range(_NODES_A_PROCESS)]
        async with nodes(control_plane.address, names, control_plane.join_token) as more:
            return await _with_nodes(control_plane, url, count, revision, [*started, more])
    for each in started:
        await each.until_applied(revision)
    api = AdminApi(control_plane.address, control_plane.owner_token)
    try:
        revoked_ms = await _revocations(api, url, started)
        return revoked_ms, await _changes(api, started)
    finally:
        await api.channel.close()


async def _revocations(api: AdminApi, url: str, started: list[NodesProgram]) -> list[float]:
    store, took_ms = Store(url), list[float]()
    for number in range(_CHANGES):
        async with store.reading() as session:
            name = (await session.get_one(tables.ApiKey, f"key-{number}")).name
        began_ns = time.time_ns()
        request = key_pb.RevokeApiKeyRequest(name=name, wait_ms=10_000)
        receipt = await api.api_keys.RevokeApiKey(request)
        if receipt.missing:
            raise BenchError(f"nodes did not obey a revocation in 10 s: {list(receipt.missing)}")
        for each in started:
            seen = each.revoked_at_ns(f"key-{number}")
            took_ms += [(at_ns - began_ns) / 1e6 for at_ns in seen.values()]
    await store.close()
    return took_ms


async def _changes(api: AdminApi, started: list[NodesProgram]) -> list[float]:
    took_ms: list[float] = []
    for number in range(_CHANGES):
        began_ns = time.time_ns()
        organization = await api.create_organization(f"new-{number}")
        for each in started:
            await each.until_applied(organization.revision)
            took_ms += [(each.newest(name)["at_ns"] - began_ns) / 1e6 for name in each.names]
    return took_ms


def _latency_figures(name: str, took_ms: list[float]) -> Iterable[Figure]:
    ordered = sorted(took_ms)
    counts = [sum(each <= bound for each in ordered) for bound in _BUCKETS]
    histogram = ", ".join(
        f"≤ {bound} ms: {count / len(ordered):.1%}"
        for bound, count in zip(_BUCKETS, counts, strict=True)
    )
    yield Figure(f"{name}, p50", percentile(ordered, 50), "ms", note=histogram)
    yield Figure(f"{name}, p99", percentile(ordered, 99), "ms")
    yield Figure(f"{name}, longest", ordered[-1], "ms")
