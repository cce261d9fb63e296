"""The composition root: the only module that knows every concrete class.

Start: schema, bootstrap owner, the service's settings, tiers, first load, listen, ready file. Stop: the
ready file goes first, then the streams of the nodes end, then calls in work have a few seconds.
"""

import asyncio
import contextlib
import json
import os
import secrets
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Final

import grpc
import grpc.aio
import structlog
from grpc_health.v1 import (  # type: ignore[import-untyped] # has no types
    health,
    health_pb2,
    health_pb2_grpc,
)
from sqlalchemy.exc import SQLAlchemyError
from tollkeeper.admin.v1 import node_service_pb2_grpc, operations_service_pb2_grpc
from tollkeeper.admin.v1 import usage_service_pb2_grpc as admin_usage_grpc
from tollkeeper.enrollment.v1 import device_enrollment_service_pb2_grpc as enrollment_grpc
from tollkeeper.enrollment.v1 import node_enrollment_service_pb2_grpc as node_enrollment_grpc
from tollkeeper.usage.v1 import usage_service_pb2_grpc

from controlplane.domain.errors import DomainError
from controlplane.metrics_listener import metrics_served
from controlplane.pki.certificates import NODE_LIFETIME
from controlplane.ports import Addresses, PortError, Ports, joining_of
from controlplane.replication import Replication
from controlplane.rpc.admin_services import add_admin_services
from controlplane.rpc.changing import Backend
from controlplane.rpc.config import ConfigServicer, add_config_service
from controlplane.rpc.enrollment import DeviceEnrollmentServicer
from controlplane.rpc.measuring import MeasuredRevoker
from controlplane.rpc.node_admission import NodeAdmission
from controlplane.rpc.node_enrollment import Joining, NodeEnrollmentServicer
from controlplane.rpc.node_roster import NodeRoster
from controlplane.rpc.nodes import NodeServicer
from controlplane.rpc.operations import ControlPlane, OperationsServicer
from controlplane.rpc.usage import UsageReportServicer
from controlplane.rpc.usage_queries import UsageQueryServicer
from controlplane.secrets.sealing import Sealer, parse_master_keys
from controlplane.settings import Settings
from controlplane.snapshots.fleet import Fleet
from controlplane.snapshots.measured_fleet import MeasuredFleet
from controlplane.snapshots.opening import secret_opener
from controlplane.snapshots.publisher import Publisher
from controlplane.store import schema
from controlplane.store.compaction import compact, forget_pending_devices, forget_versions
from controlplane.store.database import Store
from controlplane.store.join_tokens import forget_old_tokens
from controlplane.store.service import (
    apply_service_settings,
    ensure_bootstrap_owner,
    ensure_tiers,
)
from controlplane.tasks import running

READY_FILE: Final = "controlplane.ready"

# Within 5 s with the second that a stream has for its farewell.
STOP_GRACE_S: Final = 3.0

# What compaction and forgetting remove is days old.
COMPACTION_INTERVAL_S: Final = 3600.0

_log: Final = structlog.get_logger(__name__)


class StartError(Exception):
    """The control plane cannot start. One line that says what to do, without secrets."""


@asynccontextmanager
async def serving(
    settings: Settings, *, node_lifetime: timedelta = NODE_LIFETIME
) -> AsyncIterator[str]:
    """Run a control plane while the block runs; yields the address that administrators call.

    Args:
        settings: What the environment decides.
        node_lifetime: For how long certificates of nodes hold.

    Raises:
        StartError: The data directory, the database or the port cannot be used.
    """
    ready_file = settings.data_dir / READY_FILE
    _prepare_data_dir(settings.data_dir, ready_file)
    sealer = Sealer(parse_master_keys(settings.master_key.get_secret_value()))
    async with AsyncExitStack() as stack:
        store = await _open_store(settings)
        stack.push_async_callback(store.close)
        own = ControlPlane(secrets.token_hex(6), version("tollkeeper"), time.monotonic())
        replication = Replication(store, settings.data_dir, own.control_plane_id)
        fleet = MeasuredFleet(secret_opener(sealer), peers=replication.replicas)
        stack.callback(store.changed.listen(fleet.note_commit))
        publisher = Publisher(store, fleet)
        with _database_errors():
            # Before anything is written: a restored database must not count on unnoticed.
            await replication.start()
            await _write_own_rows(store, settings)
            await publisher.load()
        await stack.enter_async_context(running(publisher.run()))
        await stack.enter_async_context(
            replication.running(fleet, publisher, lambda: _compacting(store))
        )

        with _database_errors(), _port_errors():
            roster = NodeRoster(store)
            await roster.refresh()
            joining = await joining_of(settings, store, sealer, roster, node_lifetime)
            admission = NodeAdmission(roster, joining.proof)
            ports = Ports(settings, store, admission, joining)
        await stack.enter_async_context(running(roster.run()))

        reports = UsageReportServicer(store, fleet)
        revoker = MeasuredRevoker(fleet)
        add_admin_services(ports.admin, store, sealer, revoker, store.clock)
        backend = Backend(store, sealer, revoker, store.clock)
        _add_own_services(ports, backend, own, fleet, publisher, reports, admission, joining)
        _add_node_enrollment(ports, NodeEnrollmentServicer(store, joining))
        await _add_health(ports.admin)
        with _port_errors():
            addresses = await ports.start(stack)
        stack.push_async_callback(_stop, ports, fleet, reports)

        with _port_errors():
            metrics = await stack.enter_async_context(
                _metrics_served(settings, fleet, publisher, revoker)
            )
        _write_ready_file(ready_file, addresses, metrics)
        stack.callback(ready_file.unlink, missing_ok=True)
        _log.info("control plane serves", address=addresses.admin, node_address=addresses.node)
        yield addresses.admin
        _log.info("control plane stops")


def _prepare_data_dir(data_dir: Path, ready_file: Path) -> None:
    try:
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        ready_file.unlink(missing_ok=True)
    except OSError as error:
        raise StartError(f"TOLLKEEPER_DATA_DIR cannot be used: {error.strerror}") from None


async def _open_store(settings: Settings) -> Store:
    """Open the database with its schema."""
    url = settings.database
    with _database_errors():
        if url.startswith("sqlite"):
            await schema.upgrade(url)
        elif await schema.current(url) != schema.head():
            raise StartError("the database has another schema: run `tollkeeper db upgrade` first")
    return Store(url)


async def _write_own_rows(store: Store, settings: Settings) -> None:
    """Write the rows that the service needs, where they differ."""
    token = settings.bootstrap_admin_token.get_secret_value()
    await ensure_bootstrap_owner(store, token, secrets.randbelow)
    await apply_service_settings(store, settings.service_defaults)
    await ensure_tiers(store)


@contextlib.contextmanager
def _database_errors() -> Iterator[None]:
    try:
        yield
    except DomainError as error:
        raise StartError(f"the database cannot be used: {error.detail}") from error
    except (SQLAlchemyError, OSError, TimeoutError) as error:
        # The text of the error may hold the URL with its password.
        raise StartError(f"the database cannot be used: {type(error).__name__}") from error


@contextlib.contextmanager
def _port_errors() -> Iterator[None]:
    try:
        yield
    except PortError as error:
        raise StartError(str(error)) from error


async def _compacting(store: Store) -> None:
    """Forget what nobody needs any more. One of all control planes does it: the leader."""
    while True:
        try:
            await compact(store)
            await forget_versions(store)
            await forget_pending_devices(store)
            await forget_old_tokens(store)
        except (DomainError, SQLAlchemyError, OSError, TimeoutError) as error:
            _log.warning("compaction failed", error=type(error).__name__)
        await asyncio.sleep(COMPACTION_INTERVAL_S)


def _add_own_services(
    ports: Ports,
    backend: Backend,
    own: ControlPlane,
    fleet: Fleet,
    publisher: Publisher,
    reports: UsageReportServicer,
    admission: NodeAdmission,
    joining: Joining,
) -> None:
    store = backend.store
    add_config_service(
        ConfigServicer(
            fleet,
            control_plane_id=own.control_plane_id,
            version=own.version,
            identify=admission.identify,
        ),
        ports.nodes,
    )
    enrollment_grpc.add_DeviceEnrollmentServiceServicer_to_server(
        DeviceEnrollmentServicer(store, fleet), ports.nodes
    )
    usage_service_pb2_grpc.add_UsageServiceServicer_to_server(reports, ports.nodes)
    admin_usage_grpc.add_UsageServiceServicer_to_server(UsageQueryServicer(store), ports.admin)
    node_service_pb2_grpc.add_NodeServiceServicer_to_server(
        NodeServicer(backend, joining, fleet, own.control_plane_id, fleet.peers), ports.admin
    )
    operations_service_pb2_grpc.add_OperationsServiceServicer_to_server(
        OperationsServicer(backend, publisher, own, fleet), ports.admin
    )


def _add_node_enrollment(ports: Ports, servicer: NodeEnrollmentServicer) -> None:
    """Offer both its methods on both ports; who may call there decides which of them can be called."""
    for server in {ports.admin, ports.nodes}:
        node_enrollment_grpc.add_NodeEnrollmentServiceServicer_to_server(servicer, server)


async def _add_health(server: grpc.aio.Server) -> None:
    servicer = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    await servicer.set("", health_pb2.HealthCheckResponse.SERVING)


async def _stop(ports: Ports, fleet: Fleet, reports: UsageReportServicer) -> None:
    fleet.close()
    reports.close()
    await ports.stop(STOP_GRACE_S)


@asynccontextmanager
async def _metrics_served(
    settings: Settings, fleet: MeasuredFleet, publisher: Publisher, revoker: MeasuredRevoker
) -> AsyncIterator[str | None]:
    """Serve metrics while the block runs; yields the address, None where they are off.

    Raises:
        PortError: The port cannot be used.
    """
    if settings.metrics_port is None:
        yield None
        return
    # Loads the metrics library, which takes longer than most imports and which only this needs.
    from controlplane.metrics import Sources, exposition

    expose = exposition(Sources(fleet, fleet.tally, fleet, lambda: publisher.problems, revoker))
    async with AsyncExitStack() as stack:
        try:
            port = await stack.enter_async_context(
                metrics_served(settings.host, settings.metrics_port, expose)
            )
        except OSError:
            raise PortError(
                f"port {settings.metrics_port} of {settings.host} cannot be used: is it taken?"
            ) from None
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        yield f"{host}:{port}"


def _write_ready_file(path: Path, addresses: Addresses, metrics: str | None) -> None:
    """Write the file at once and whole: who sees it can read it."""
    content = json.dumps(
        {
            "admin_address": addresses.admin,
            "node_address": addresses.node,
            "metrics_address": metrics,
            "pid": os.getpid(),
        }
    )
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f"{path.name}.")
    with open(descriptor, "w", encoding="utf-8") as file:
        file.write(content)
    Path(temporary).replace(path)
