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
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
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
from tollkeeper.config.v1 import config_service_pb2_grpc
from tollkeeper.enrollment.v1 import device_enrollment_service_pb2_grpc as enrollment_grpc
from tollkeeper.usage.v1 import usage_service_pb2_grpc

from controlplane.domain.errors import DomainError
from controlplane.rpc.admin_services import add_admin_services, interceptors
from controlplane.rpc.changing import Backend
from controlplane.rpc.config import ConfigServicer
from controlplane.rpc.enrollment import DeviceEnrollmentServicer
from controlplane.rpc.nodes import NodeServicer
from controlplane.rpc.operations import ControlPlane, OperationsServicer
from controlplane.rpc.usage import UsageReportServicer
from controlplane.rpc.usage_queries import UsageQueryServicer
from controlplane.secrets.sealing import Sealer, parse_master_keys
from controlplane.settings import Settings
from controlplane.snapshots.fleet import Fleet
from controlplane.snapshots.opening import secret_opener
from controlplane.snapshots.publisher import Publisher
from controlplane.store import schema
from controlplane.store.compaction import compact, forget_pending_devices
from controlplane.store.database import Store
from controlplane.store.service import (
    apply_service_settings,
    ensure_bootstrap_owner,
    ensure_tiers,
)

READY_FILE: Final = "controlplane.ready"

# Within 5 s with the second that a stream has for its farewell.
STOP_GRACE_S: Final = 3.0

# What compaction and forgetting remove is days old.
COMPACTION_INTERVAL_S: Final = 3600.0

# A chunk of a transfer stays below 1 MiB, a batch of usage too; the rest is small.
MAX_MESSAGE_BYTES: Final = 4 * 1024 * 1024

_OPTIONS: Final = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    # A dead connection is noticed even when nothing is said on it, and nodes may ask likewise.
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 5_000),
    # Two control planes must never share a port without knowing it.
    ("grpc.so_reuseport", 0),
)

_log: Final = structlog.get_logger(__name__)


class StartError(Exception):
    """The control plane cannot start. One line that says what to do, without secrets."""


@asynccontextmanager
async def serving(settings: Settings) -> AsyncIterator[str]:
    """Run a control plane while the block runs; yields the address that it listens on.

    Raises:
        StartError: The data directory, the database or the port cannot be used.
    """
    ready_file = settings.data_dir / READY_FILE
    _prepare_data_dir(settings.data_dir, ready_file)
    sealer = Sealer(parse_master_keys(settings.master_key.get_secret_value()))
    async with AsyncExitStack() as stack:
        store = await _open_store(settings)
        stack.push_async_callback(store.close)
        fleet = Fleet(secret_opener(sealer))
        publisher = Publisher(store, fleet)
        with _database_errors():
            await publisher.load()
        await stack.enter_async_context(_running(publisher.run()))
        await stack.enter_async_context(_running(_compacting(store)))

        reports = UsageReportServicer(store, fleet)
        server = grpc.aio.server(
            interceptors=interceptors(store, node_token=settings.join_token.get_secret_value()),
            options=_OPTIONS,
        )
        add_admin_services(server, store, sealer, fleet, store.clock)
        backend = Backend(store, sealer, fleet, store.clock)
        _add_own_services(server, backend, fleet, publisher, reports)
        await _add_health(server)
        address = _bind(server, settings)
        await server.start()
        stack.push_async_callback(_stop, server, fleet, reports)

        _write_ready_file(ready_file, address)
        stack.callback(ready_file.unlink, missing_ok=True)
        _log.info("control plane serves", address=address)
        yield address
        _log.info("control plane stops")


def _prepare_data_dir(data_dir: Path, ready_file: Path) -> None:
    try:
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        ready_file.unlink(missing_ok=True)
    except OSError as error:
        raise StartError(f"TOLLKEEPER_DATA_DIR cannot be used: {error.strerror}") from None


async def _open_store(settings: Settings) -> Store:
    """Open the database with the schema and the rows that the service needs."""
    url = settings.database
    with _database_errors():
        if url.startswith("sqlite"):
            await schema.upgrade(url)
        elif await schema.current(url) != schema.head():
            raise StartError("the database has another schema: run `tollkeeper db upgrade` first")
        store = Store(url)
        token = settings.bootstrap_admin_token.get_secret_value()
        try:
            await ensure_bootstrap_owner(store, token, secrets.randbelow)
            await apply_service_settings(store, settings.service_defaults)
            await ensure_tiers(store)
        except BaseException:
            await store.close()
            raise
    return store


@contextlib.contextmanager
def _database_errors() -> Iterator[None]:
    try:
        yield
    except DomainError as error:
        raise StartError(f"the database cannot be used: {error.detail}") from error
    except (SQLAlchemyError, OSError, TimeoutError) as error:
        # The text of the error may hold the URL with its password.
        raise StartError(f"the database cannot be used: {type(error).__name__}") from error


@asynccontextmanager
async def _running(work: Coroutine[object, object, None]) -> AsyncIterator[None]:
    """Run `work` beside the block, and cancel it after."""
    task = asyncio.create_task(work)
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def _compacting(store: Store) -> None:
    """Forget what nobody needs any more: old tombstones, answers kept for repetitions, devices that nobody approved."""
    while True:
        try:
            await compact(store)
            await forget_pending_devices(store)
        except (DomainError, SQLAlchemyError, OSError, TimeoutError) as error:
            _log.warning("compaction failed", error=type(error).__name__)
        await asyncio.sleep(COMPACTION_INTERVAL_S)


def _add_own_services(
    server: grpc.aio.Server,
    backend: Backend,
    fleet: Fleet,
    publisher: Publisher,
    reports: UsageReportServicer,
) -> None:
    store = backend.store
    own = ControlPlane(secrets.token_hex(6), version("tollkeeper"), time.monotonic())
    config_service_pb2_grpc.add_ConfigServiceServicer_to_server(
        ConfigServicer(fleet, control_plane_id=own.control_plane_id, version=own.version),
        server,
    )
    enrollment_grpc.add_DeviceEnrollmentServiceServicer_to_server(
        DeviceEnrollmentServicer(store, fleet), server
    )
    usage_service_pb2_grpc.add_UsageServiceServicer_to_server(reports, server)
    admin_usage_grpc.add_UsageServiceServicer_to_server(UsageQueryServicer(store), server)
    node_service_pb2_grpc.add_NodeServiceServicer_to_server(NodeServicer(fleet), server)
    operations_service_pb2_grpc.add_OperationsServiceServicer_to_server(
        OperationsServicer(backend, publisher, own, fleet), server
    )


async def _add_health(server: grpc.aio.Server) -> None:
    servicer = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    await servicer.set("", health_pb2.HealthCheckResponse.SERVING)


def _bind(server: grpc.aio.Server, settings: Settings) -> str:
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    try:
        port = server.add_insecure_port(f"{host}:{settings.admin_port}")
    except RuntimeError:
        raise StartError(
            f"port {settings.admin_port} of {settings.host} cannot be used: is it taken?"
        ) from None
    return f"{host}:{port}"


async def _stop(server: grpc.aio.Server, fleet: Fleet, reports: UsageReportServicer) -> None:
    fleet.close()
    reports.close()
    await server.stop(STOP_GRACE_S)


def _write_ready_file(path: Path, address: str) -> None:
    """Write the file at once and whole: who sees it can read it."""
    content = json.dumps({"admin_address": address, "pid": os.getpid()})
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f"{path.name}.")
    with open(descriptor, "w", encoding="utf-8") as file:
        file.write(content)
    Path(temporary).replace(path)
