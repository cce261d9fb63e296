"""A ledger behind a real server, and a node's and an administrator's connection to it."""

from collections.abc import AsyncIterator
from dataclasses import dataclass

import grpc.aio
import pytest
from tollkeeper.admin.v1 import usage_service_pb2_grpc as admin_grpc
from tollkeeper.usage.v1 import usage_service_pb2_grpc as usage_grpc

from controlplane.rpc.usage import UsageReportServicer
from controlplane.rpc.usage_queries import UsageQueryServicer
from controlplane.store.database import Store


@dataclass
class LedgerServer:
    """A server with both usage services, and a channel to it."""

    reports: UsageReportServicer
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
    reports = UsageReportServicer(store)
    server = grpc.aio.server()
    usage_grpc.add_UsageServiceServicer_to_server(reports, server)
    admin_grpc.add_UsageServiceServicer_to_server(UsageQueryServicer(store), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield LedgerServer(reports, channel)
    await server.stop(1)
