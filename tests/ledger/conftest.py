"""A ledger behind a real server, and a node's and an administrator's connection to it."""

from collections.abc import AsyncIterator
from dataclasses import dataclass

import grpc.aio
import pytest
from tollkeeper.admin.v1 import usage_service_pb2_grpc as admin_grpc
from tollkeeper.usage.v1 import usage_service_pb2_grpc as usage_grpc

from controlplane.rpc.errors import error_edge
from controlplane.rpc.interception import SurroundingInterceptor
from controlplane.rpc.usage import UsageReportServicer
from controlplane.rpc.usage_queries import UsageQueryServicer
from controlplane.secrets.sealing import MasterKey, Sealer
from controlplane.snapshots.fleet import Fleet
from controlplane.snapshots.opening import secret_opener
from controlplane.store.database import Store


@dataclass
class LedgerServer:
    """A server with both usage services, and a channel to it."""

    reports: UsageReportServicer
    fleet: Fleet
    channel: grpc.aio.Channel

    @property
    def node(self) -> "usage_grpc.UsageServiceAsyncStub":
        return usage_grpc.UsageServiceStub(self.channel)

    @property
    def admin(self) -> "admin_grpc.UsageServiceAsyncStub":
        return admin_grpc.UsageServiceStub(self.channel)


@pytest.fixture
async def ledger(store: Store) -> AsyncIterator[LedgerServer]:
    """The usage services on a database of this test's own."""
    fleet = Fleet(secret_opener(Sealer([MasterKey(b"k" * 32)])))
    reports = UsageReportServicer(store, fleet)
    server = grpc.aio.server(interceptors=[SurroundingInterceptor(error_edge)])
    usage_grpc.add_UsageServiceServicer_to_server(reports, server)
    admin_grpc.add_UsageServiceServicer_to_server(UsageQueryServicer(store), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield LedgerServer(reports, fleet, channel)
    await server.stop(1)
