"""The programs that make up a development stack: which, with what settings, in which order.

Start: Redis, the mock provider and the control plane at the same time; then what the first start creates; then the data
planes, which therefore never are ready with a configuration that lacks it. Stop is the other way round: data planes
first, so that their open streams end while everything that they need is there.
"""

import asyncio
import os
import sys
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from controlplane.cli.dev_environment import (
    CONTROLPLANE_SETTINGS,
    DATAPLANE_SETTINGS,
    PREFIX,
    environment_of,
    value_of,
)
from controlplane.cli.dev_memory import Memory
from controlplane.cli.dev_probes import is_free, status_of, wait_until_free
from controlplane.cli.dev_providers import real_providers
from controlplane.cli.dev_report import Credentials, Pids
from controlplane.cli.dev_secrets import make_secrets, private_directory
from controlplane.cli.dev_seeding import SeederFactory, Seeding
from controlplane.cli.processes import START_DEADLINE_S, Child, Program, Report, StartError

LOOPBACK: Final = "127.0.0.1"
_LOOPBACK_NETWORKS: Final = "127.0.0.0/8,::1/128"
# A stack that was killed leaves its ports within milliseconds; whoever holds one longer keeps it.
_PORT_PATIENCE_S: Final = 1.0
_POLL_S: Final = 0.03
# A data plane gives open streams 30 s; the rest closes files.
_DRAIN_S: Final = 35.0
_CLOSE_S: Final = 10.0


@dataclass(frozen=True, slots=True)
class Options:
    """What the user chose; a port of 0 takes a free one."""

    data_dir: Path
    port: int = 8080
    admin_port: int = 50051
    replicas: int = 1
    restarts: bool = True


def _module(name: str) -> tuple[str, ...]:
    # -P: a folder of that name where the user happens to be must not be run in its place.
    return (sys.executable, "-P", "-m", name)


@dataclass(frozen=True, slots=True)
class Commands:
    """The argument vector of each program, without ports and directories."""

    controlplane: tuple[str, ...] = field(default_factory=lambda: _module("controlplane"))
    dataplane: tuple[str, ...] = field(default_factory=lambda: _module("dataplane"))
    redis: tuple[str, ...] = field(default_factory=lambda: _module("dataplane.embedded_redis"))
    mock: tuple[str, ...] = field(default_factory=lambda: _module("dataplane.mock"))


class Stack:
    """All processes of one data directory, whose lock the caller holds."""

    def __init__(
        self,
        options: Options,
        environ: Mapping[str, str],
        report: Report,
        *,
        commands: Commands,
        seeder: SeederFactory,
    ) -> None:
        self._options = options
        self._environ = environ
        self._report = report
        self._commands = commands
        self._memory = Memory(options.data_dir, value_of(environ, "DATABASE_URL"))
        self._secrets = make_secrets(options.data_dir, options.replicas)
        real = real_providers(environ, options.port)
        self._seeding = Seeding(self._memory, real, seeder, report)
        self._given_redis_url = value_of(environ, "REDIS_URL")
        self._redis = None if self._given_redis_url else Child(self._redis_program(), report)
        self._mock = Child(self._mock_program(), report)
        self._controlplane = Child(self._controlplane_program(), report)
        self._dataplanes: list[Child] = []

    @property
    def needs_seeding(self) -> bool:
        """Whether this start has to create something: what the first one promises, or a real provider."""
        return self._seeding.is_needed

    async def start(self) -> Credentials:
        """Start everything and wait until each data plane has applied the configuration.

        Raises:
            StartError: A port is taken, or a program does not start. What was started is left to `stop`.
        """
        await self._require_ports()
        first = [child for child in (self._controlplane, self._mock, self._redis) if child]
        await _all([self._start(child) for child in first])
        api_key = await self._seeding.settle(
            self._mock.address, self._controlplane.address, self._admin_token()
        )
        self._dataplanes = [
            Child(self._dataplane_program(number), self._report)
            for number in range(1, self._options.replicas + 1)
        ]
        await _all([self._start_serving(child) for child in self._dataplanes])
        credentials = self._credentials(api_key)
        self._memory.keep_credentials(credentials.as_json())
        return credentials

    async def stop(self, kill: asyncio.Event) -> None:
        """End everything in order; from the moment `kill` is set, at once. Nothing is left running."""
        await asyncio.gather(*(child.stop(_DRAIN_S, kill) for child in self._dataplanes))
        for child in (self._controlplane, self._mock, self._redis):
            if child is not None:
                await child.stop(_CLOSE_S, kill)

    async def _require_ports(self) -> None:
        host = value_of(self._environ, "HOST") or LOOPBACK
        for option, at, port in (
            ("--port", host, self._options.port),
            ("--admin-port", LOOPBACK, self._options.admin_port),
        ):
            try:
                is_ours = not port or await wait_until_free(at, port, _PORT_PATIENCE_S)
            except OSError as error:
                raise StartError(f"cannot use port {port} of {at}: {error.strerror}") from error
            if not is_ours:
                raise StartError(f"port {port} of {at} is taken; choose another with {option}")

    async def _start(self, child: Child) -> None:
        await child.start()
        child.keep(restarts=self._options.restarts)

    async def _start_serving(self, child: Child) -> None:
        """Start a data plane and wait until it serves the newest configuration."""
        await self._start(child)
        try:
            async with asyncio.timeout(START_DEADLINE_S):
                while await status_of(child.address, "/health/ready") != 200:
                    if child.is_given_up:
                        raise StartError(f"{child.name} ended before it was ready")
                    await asyncio.sleep(_POLL_S)
        except TimeoutError:
            raise StartError(
                f"{child.name} did not apply the configuration in {START_DEADLINE_S:.0f} s"
            ) from None

    def _credentials(self, api_key: str) -> Credentials:
        redis = self._redis
        return Credentials(
            base_urls=tuple(child.address for child in self._dataplanes),
            admin_address=self._controlplane.address,
            mock_url=self._mock.address,
            api_key=api_key,
            admin_token=self._admin_token(),
            redis_url=self._redis_url(),
            pids=Pids(
                dev=os.getpid(),
                controlplane=self._controlplane.pid,
                dataplanes=tuple(child.pid for child in self._dataplanes),
                redis=redis.pid if redis else None,
                mock=self._mock.pid,
            ),
        )

    def _admin_token(self) -> str:
        return self._secrets.admin_token.read_text(encoding="utf-8")

    def _redis_url(self) -> str:
        return self._redis.address if self._redis else self._given_redis_url or ""

    def _redis_program(self) -> Program:
        data_dir = private_directory(self._options.data_dir / "redis")
        return Program(
            name="redis",
            argv=(*self._commands.redis, "--data-dir", str(data_dir)),
            environment=environment_of(self._environ, frozenset(), {}),
            port_setting="--port",
        )

    def _mock_program(self) -> Program:
        remembered = self._memory.mock_port
        return Program(
            name="mock",
            argv=(*self._commands.mock, "--host", LOOPBACK),
            environment=environment_of(self._environ, frozenset(), {}),
            port_setting="--port",
            # The configuration points there; if somebody took it, the configuration follows.
            port=remembered if remembered and is_free(LOOPBACK, remembered) else 0,
        )

    def _controlplane_program(self) -> Program:
        data_dir = private_directory(self._options.data_dir / "controlplane")
        decided = {
            "DATA_DIR": str(data_dir),
            "MASTER_KEY_FILE": str(self._secrets.master_key),
            "JOIN_TOKEN_FILE": str(self._secrets.join_token),
            "BOOTSTRAP_ADMIN_TOKEN_FILE": str(self._secrets.admin_token),
        }
        if not value_of(self._environ, "MAX_REPLICAS"):
            decided["MAX_REPLICAS"] = str(self._options.replicas)
        return Program(
            name="controlplane",
            argv=self._commands.controlplane,
            environment=environment_of(self._environ, CONTROLPLANE_SETTINGS, decided),
            port_setting=f"{PREFIX}ADMIN_PORT",
            port=self._options.admin_port,
            ready_file=data_dir / "controlplane.ready",
        )

    def _dataplane_program(self, number: int) -> Program:
        data_dir = private_directory(self._options.data_dir / f"dataplane-{number}")
        allowed = value_of(self._environ, "PRIVATE_UPSTREAMS")
        decided = {
            "DATA_DIR": str(data_dir),
            "CONTROL_PLANE": self._controlplane.address,
            "REDIS_URL": self._redis_url(),
            "NODE_ID": f"dev-{number}",
            "NODE_KEY_FILE": str(self._secrets.node_keys[number - 1]),
            "JOIN_TOKEN_FILE": str(self._secrets.join_token),
            "PRIVATE_UPSTREAMS": ",".join(filter(None, (_LOOPBACK_NETWORKS, allowed))),
        }
        return Program(
            name=f"dataplane dev-{number}",
            argv=self._commands.dataplane,
            environment=environment_of(self._environ, DATAPLANE_SETTINGS, decided),
            port_setting=f"{PREFIX}PORT",
            port=self._options.port if number == 1 else 0,
            ready_file=data_dir / "dataplane.ready",
        )


async def _all(coroutines: Sequence[Coroutine[Any, Any, None]]) -> None:  # Any: as asyncio types it
    """Run all at once; when one fails, cancel the others and raise its error."""
    try:
        async with asyncio.TaskGroup() as group:
            for coroutine in coroutines:
                group.create_task(coroutine)
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from errors
