"""Real control planes of every mode, in this process, and nodes that call them."""

import base64
import json
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from tollkeeper.admin.v1 import node_service_pb2 as node_pb
from tollkeeper.admin.v1 import node_service_pb2_grpc as node_grpc

from controlplane.pki.certificates import NODE_LIFETIME
from controlplane.server import serving
from controlplane.settings import TlsMode, load_settings
from dataplane.control.channels import TlsChannels, secure_channel
from dataplane.control.identity import CONTROL_PLANE_NAME, Identity, KeyRequest
from dataplane.control.node_enrollment import join
from dataplane.domain.join_tokens import JoinToken, read_join_token
from tests.distribution.process import owner_token

MASTER_KEY = base64.b64encode(secrets.token_bytes(32)).decode()
OWNER_TOKEN = owner_token()


def clock_ms() -> int:
    return time.time_ns() // 1_000_000


@dataclass
class ControlPlane:
    """A running control plane, and its administrator."""

    admin_address: str
    node_address: str
    authority_pem: bytes
    data_dir: Path
    server_name: str = CONTROL_PLANE_NAME
    channels: list[grpc.aio.Channel] = field(default_factory=list)

    def as_administrator(self) -> grpc.aio.Channel:
        """Return a channel to the admin port; calls present the owner's token in `BEARER`."""
        channel = secure_channel(self.admin_address, self.authority_pem, self.server_name)
        self.channels.append(channel)
        return channel

    @property
    def nodes(self) -> "node_grpc.NodeServiceAsyncStub":
        return node_grpc.NodeServiceStub(self.as_administrator())

    async def token(self, node_id: str = "", **fields: Any) -> JoinToken:
        return read_join_token(await self.token_text(node_id, **fields))

    async def token_text(self, node_id: str = "", **fields: Any) -> str:
        request = node_pb.CreateJoinTokenRequest(
            node_id=node_id, addresses=[self.admin_address], **fields
        )
        created = await self.nodes.CreateJoinToken(request, metadata=BEARER, timeout=5)
        return created.join_token

    async def joined(self, node_id: str, **fields: Any) -> Identity:
        """Have a node join."""
        token = await self.token(node_id, **fields)
        return await join(token, node_id, KeyRequest.make(node_id), clock_ms)

    async def ban(self, node_id: str, reason: str = "") -> node_pb.BanNodeResponse:
        request = node_pb.BanNodeRequest(node_id=node_id, reason=reason)
        return await self.nodes.BanNode(request, metadata=BEARER, timeout=5)

    async def unban(self, node_id: str) -> None:
        request = node_pb.UnbanNodeRequest(node_id=node_id)
        await self.nodes.UnbanNode(request, metadata=BEARER, timeout=5)

    async def enrolled(self) -> dict[str, node_pb.EnrolledNode]:
        request = node_pb.ListEnrolledNodesRequest()
        found = await self.nodes.ListEnrolledNodes(request, metadata=BEARER, timeout=5)
        return {each.node_id: each for each in found.nodes}


BEARER = (("authorization", f"Bearer {OWNER_TOKEN}"),)


@asynccontextmanager
async def running(
    data_dir: Path,
    *,
    tls: TlsMode = TlsMode.OWN,
    node_lifetime: timedelta = NODE_LIFETIME,
    **settings: Any,
) -> AsyncIterator[ControlPlane]:
    """Run a control plane with its data in `data_dir`."""
    environment = {
        "DATA_DIR": data_dir,
        "MASTER_KEY": MASTER_KEY,
        "BOOTSTRAP_ADMIN_TOKEN": OWNER_TOKEN,
        "TLS": tls,
        "ADMIN_PORT": 0,
        "NODE_PORT": 0,
        **{name.upper(): value for name, value in settings.items()},
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(f"TOLLKEEPER_{name}", str(value))
        made = load_settings()
    async with serving(made, node_lifetime=node_lifetime):
        ready = json.loads((data_dir / "controlplane.ready").read_text("utf-8"))
        authority = data_dir / "authority.pem"
        control_plane = ControlPlane(
            ready["admin_address"],
            ready["node_address"],
            authority.read_bytes() if authority.exists() else b"",
            data_dir,
        )
        try:
            yield control_plane
        finally:
            for channel in control_plane.channels:
                await channel.close()


@asynccontextmanager
async def node_channel(
    identity: Identity, control_plane: ControlPlane
) -> AsyncIterator[grpc.aio.Channel]:
    """Open a channel to the node port with the certificate of a node."""
    async with TlsChannels(identity).to(control_plane.node_address) as channel:
        yield channel
