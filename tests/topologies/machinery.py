"""Real servers on loopback that know of each other: a primary with replica and sentinels, a Cluster."""

import itertools
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import redis

from dataplane import embedded_redis
from dataplane.embedded_redis import RunningRedis
from dataplane.limits.cluster import slot_of

PASSWORD = secrets.token_hex(8)
SENTINEL_PASSWORD = secrets.token_hex(8)
PRIMARY = "counters"
SLOTS = 16_384
PATIENCE_SECONDS = 15.0
_HOST = "127.0.0.1"


def wait_until(condition: Callable[[], bool]) -> None:
    """Return when something has come about in other processes."""
    ends_at = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < ends_at, "it did not come about"
        time.sleep(0.01)


def client(server: RunningRedis) -> redis.Redis:
    return redis.Redis.from_url(server.url)


def start(data_dir: Path, *settings: str, port: int = 0) -> RunningRedis:
    """Start a server with some settings more than the embedded one has."""
    data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    port = port or embedded_redis._free_port()
    configuration = embedded_redis._write_configuration(data_dir, port, PASSWORD)
    with configuration.open("a") as file:
        file.write("\n".join((f"masterauth {PASSWORD}", *settings, "")))
    return _running(embedded_redis.server_binary(), configuration, data_dir, port, PASSWORD)


def start_sentinel(data_dir: Path, primary: RunningRedis) -> RunningRedis:
    """Start a sentinel that watches `primary`; two of them agree that it is gone after 0.4 s."""
    data_dir.mkdir(mode=0o700, parents=True)
    port = embedded_redis._free_port()
    configuration = data_dir / "sentinel.conf"
    lines = (
        f"bind {_HOST}",
        f"port {port}",
        f'dir "{data_dir}"',
        'logfile "redis.log"',
        f"requirepass {SENTINEL_PASSWORD}",
        f"sentinel sentinel-pass {SENTINEL_PASSWORD}",
        f"sentinel monitor {PRIMARY} {_HOST} {primary.port} 2",
        f"sentinel auth-pass {PRIMARY} {PASSWORD}",
        f"sentinel down-after-milliseconds {PRIMARY} 400",
        f"sentinel failover-timeout {PRIMARY} 3000",
    )
    configuration.write_text("\n".join((*lines, "")))
    # The server is a sentinel when it is called so.
    binary = data_dir / "valkey-sentinel"
    binary.symlink_to(embedded_redis.server_binary())
    return _running(binary, configuration, data_dir, port, SENTINEL_PASSWORD)


def _running(
    binary: Path, configuration: Path, data_dir: Path, port: int, password: str
) -> RunningRedis:
    process = embedded_redis._spawn(binary, configuration, data_dir)
    try:
        failure = embedded_redis._await_ready(process, port, password, data_dir)
    except BaseException:
        process.kill()
        raise
    assert not failure, failure
    return RunningRedis(f"redis://:{password}@{_HOST}:{port}/0", port, process)


@dataclass(slots=True)
class Watched:
    """A primary and a replica, and the sentinels that watch them."""

    servers: list[RunningRedis]
    sentinels: list[RunningRedis]

    @property
    def url(self) -> str:
        hosts = ",".join(f"{_HOST}:{each.port}" for each in self.sentinels)
        own = f"sentinel_password={SENTINEL_PASSWORD}"
        return f"redis+sentinel://:{PASSWORD}@{hosts}/{PRIMARY}?{own}"

    def primary(self) -> RunningRedis:
        """Return the server that the first sentinel names."""
        with client(self.sentinels[0]) as sentinel:
            _, port = sentinel.execute_command("SENTINEL GET-MASTER-ADDR-BY-NAME", PRIMARY)
        [found] = [each for each in self.servers if each.port == int(port)]
        return found

    def is_complete(self) -> bool:
        """Tell whether the replica is in step and each sentinel knows of everybody."""
        with client(self.primary()) as primary:
            replication = primary.info("replication")
        if replication.get("slave0", {}).get("state") != "online":
            return False
        return all(self._knows_everybody(each) for each in self.sentinels)

    def fail_over(self) -> None:
        """Let the replica take over while the primary lives."""
        with client(self.sentinels[0]) as sentinel:
            sentinel.execute_command("SENTINEL FAILOVER", PRIMARY)

    def _knows_everybody(self, server: RunningRedis) -> bool:
        with client(server) as sentinel:
            about = sentinel.execute_command("SENTINEL MASTER", PRIMARY)
        others = len(self.sentinels) - 1
        return (int(about["num-slaves"]), int(about["num-other-sentinels"])) == (1, others)


@contextmanager
def watched(folder: Path) -> Iterator[Watched]:
    """Start a primary, a replica and three sentinels."""
    with ExitStack() as stack:
        primary = start(folder / "primary", "repl-diskless-sync-delay 0")
        stack.callback(primary.stop)
        replica = start(folder / "replica", f"replicaof {_HOST} {primary.port}")
        stack.callback(replica.stop)
        sentinels = [start_sentinel(folder / f"sentinel-{n}", primary) for n in range(3)]
        for each in sentinels:
            stack.callback(each.stop)
        it = Watched([primary, replica], sentinels)
        wait_until(it.is_complete)
        yield it


@dataclass(slots=True)
class Cluster:
    """Three primaries that share the slots evenly."""

    nodes: list[RunningRedis]
    ranges: list[tuple[int, int]]
    folder: Path
    bus_ports: list[int]
    stack: ExitStack
    moved: dict[int, RunningRedis] = field(default_factory=dict)

    @property
    def url(self) -> str:
        """One node: the others are found through it."""
        return self.nodes[0].url

    def node_of(self, hash_tag: str) -> RunningRedis:
        """Return the node that serves a tag."""
        slot = slot_of(hash_tag)
        if slot in self.moved:
            return self.moved[slot]
        [place] = [n for n, (first, last) in enumerate(self.ranges) if first <= slot <= last]
        return self.nodes[place]

    def call(self, node: RunningRedis, *words: str | int) -> object:
        with client(node) as one:
            return one.execute_command(*words)

    def begin_move(self, slot: int, source: RunningRedis, target: RunningRedis) -> None:
        """Move all keys of a slot, as the first half of `--cluster reshard` does."""
        self.call(target, "CLUSTER SETSLOT", slot, "IMPORTING", _id_of(source))
        self.call(source, "CLUSTER SETSLOT", slot, "MIGRATING", _id_of(target))
        with client(source) as one:
            while keys := one.execute_command("CLUSTER GETKEYSINSLOT", slot, 100):
                words = (_HOST, target.port, "", 0, 5_000, "AUTH", PASSWORD, "KEYS", *keys)
                one.execute_command("MIGRATE", *words)

    def end_move(self, slot: int, source: RunningRedis, target: RunningRedis) -> None:
        """Say that a slot is where its keys are, as the second half does."""
        for node in (target, source, *self.nodes):
            self.call(node, "CLUSTER SETSLOT", slot, "NODE", _id_of(target))
        self.moved[slot] = target

    def revive(self, place: int) -> None:
        """Start a node again that was killed, with what it had on disk.

        From the main thread: a server dies with the thread that started it.
        """
        node, bus_port = self.nodes[place], self.bus_ports[place]
        fresh = start(self.folder / f"node-{place}", *_settings(bus_port), port=node.port)
        self.stack.callback(fresh.stop)
        self.nodes[place] = fresh

    def is_whole(self) -> bool:
        """Tell whether every node says that all slots are served by nodes that it reaches."""
        return all(self._is_well(each) for each in self.nodes)

    def _is_well(self, node: RunningRedis) -> bool:
        with client(node) as one:
            # In two words: the library makes something else of the answer to one.
            lines = one.execute_command("CLUSTER", "INFO").decode().split()
        return {"cluster_state:ok", "cluster_slots_ok:16384", "cluster_known_nodes:3"} <= set(lines)


@contextmanager
def cluster(folder: Path) -> Iterator[Cluster]:
    """Start three nodes and make them a Cluster that goes on serving what it still can."""
    with ExitStack() as stack:
        nodes: list[RunningRedis] = []
        bus_ports = [embedded_redis._free_port() for _ in range(3)]
        for number, bus_port in enumerate(bus_ports):
            node = start(folder / f"node-{number}", *_settings(bus_port))
            stack.callback(node.stop)
            nodes.append(node)
        bounds = [SLOTS * number // 3 for number in range(4)]
        ranges = [(a, b - 1) for a, b in itertools.pairwise(bounds)]
        it = Cluster(nodes, ranges, folder, bus_ports, stack)
        for number, (node, (first, last)) in enumerate(zip(nodes, it.ranges, strict=True), start=1):
            it.call(node, "CLUSTER SET-CONFIG-EPOCH", number)
            it.call(node, "CLUSTER ADDSLOTSRANGE", first, last)
        for node, bus_port in zip(nodes[1:], bus_ports[1:], strict=True):
            it.call(nodes[0], "CLUSTER MEET", _HOST, node.port, bus_port)
        wait_until(it.is_whole)
        yield it


@contextmanager
def clients_of(cluster: Cluster) -> Iterator[dict[int, redis.Redis]]:
    """Connect to every node; by their ports."""
    clients = {node.port: client(node) for node in cluster.nodes}
    yield clients
    for each in clients.values():
        each.close()


def client_in(cluster: Cluster, clients: dict[int, redis.Redis]) -> Callable[[str], redis.Redis]:
    """Return what finds the client of the node that serves a tag."""
    return lambda tag: clients[cluster.node_of(tag).port]


def _settings(bus_port: int) -> Sequence[str]:
    return (
        "cluster-enabled yes",
        f"cluster-port {bus_port}",
        "cluster-node-timeout 1000",
        "cluster-require-full-coverage no",
    )


def _id_of(node: RunningRedis) -> str:
    with client(node) as one:
        found = one.execute_command("CLUSTER MYID")
    return found.decode() if isinstance(found, bytes) else str(found)
