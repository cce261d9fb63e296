"""The gRPC servers of a control plane: which port offers what, and what proves who is there.

TLS off      one port, on loopback, in clear: administrators and nodes present tokens
TLS own      two ports. For administrators and joining nodes: TLS, tokens. For nodes: TLS on both sides; the
             authority of both is this service's own, in the database
TLS files    the same two ports with the operator's certificates; nodes do not join by token
"""

import asyncio
import ipaddress
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

import grpc
import grpc.aio

from controlplane.pki.certificates import NODE_LIFETIME, AuthorityError
from controlplane.pki.server_tls import (
    INTERVAL_S,
    Material,
    OwnMaterial,
    ServerTls,
    TlsFilesError,
    material_in_files,
)
from controlplane.rpc.admin_services import interceptors, node_interceptors
from controlplane.rpc.node_admission import NodeAdmission, NodeProof
from controlplane.rpc.node_enrollment import Joining
from controlplane.rpc.node_roster import NodeRoster
from controlplane.secrets.sealing import Sealer
from controlplane.settings import Settings, TlsMode
from controlplane.store.authorities import ensure_authority
from controlplane.store.database import Store

AUTHORITY_FILE: Final = "authority.pem"

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
_PROOFS: Final = {
    TlsMode.OFF: NodeProof.SHARED_TOKEN,
    TlsMode.OWN: NodeProof.OWN_AUTHORITY,
    TlsMode.FILES: NodeProof.OPERATORS_AUTHORITY,
}


class PortError(Exception):
    """A port cannot be served. One line that says what to do, without secrets."""


@dataclass(frozen=True, slots=True)
class Addresses:
    """Where a control plane listens; one address twice without TLS."""

    admin: str
    node: str


async def joining_of(
    settings: Settings,
    store: Store,
    sealer: Sealer,
    roster: NodeRoster,
    lifetime: timedelta = NODE_LIFETIME,
) -> Joining:
    """Return how nodes become nodes; the authority is made when there is none yet.

    `lifetime` is that of the nodes' certificates.

    Raises:
        PortError: The authority in the database cannot be used.
    """
    proof = _PROOFS[settings.tls]
    if proof is not NodeProof.OWN_AUTHORITY:
        return Joining(proof, roster=roster)
    try:
        authority = await ensure_authority(store, sealer)
    except AuthorityError as error:
        raise PortError(str(error)) from None
    (settings.data_dir / AUTHORITY_FILE).write_bytes(authority.certificate_pem)
    return Joining(proof, authority, lifetime, roster)


class Ports:
    """The servers for administrators and for nodes: two with TLS, one twice without."""

    def __init__(
        self, settings: Settings, store: Store, admission: NodeAdmission, joining: Joining
    ) -> None:
        """Make the servers; nothing listens yet.

        Raises:
            PortError: The operator's certificates cannot be used.
        """
        self._settings = settings
        self._clock = store.clock
        authority = joining.authority
        self._own = OwnMaterial(authority, _hosts(settings.host)) if authority else None
        self._tls: ServerTls | None = None
        if settings.tls is TlsMode.OFF:
            token = settings.join_token.get_secret_value()
            around = interceptors(store, node_token=token, admission=admission)
            self.admin = self.nodes = grpc.aio.server(interceptors=around, options=_OPTIONS)
            return
        try:
            self._tls = ServerTls(self._material())
        except TlsFilesError as error:
            raise PortError(str(error)) from None
        self.admin = grpc.aio.server(
            interceptors=interceptors(store, node_token=None), options=_OPTIONS
        )
        self.nodes = grpc.aio.server(interceptors=node_interceptors(admission), options=_OPTIONS)

    async def start(self, stack: AsyncExitStack) -> Addresses:
        """Listen; certificates are exchanged in time until `stack` ends.

        Raises:
            PortError: A port is taken.
        """
        settings, tls = self._settings, self._tls
        if tls is None:
            address = _bind(self.admin, settings.host, settings.admin_port, None)
            await self.admin.start()
            return Addresses(address, address)
        addresses = Addresses(
            _bind(self.admin, settings.host, settings.admin_port, tls.for_administrators()),
            _bind(self.nodes, settings.host, settings.node_port, tls.for_nodes()),
        )
        fresh = asyncio.create_task(tls.keep_fresh(self._renewed, INTERVAL_S))
        stack.callback(fresh.cancel)
        await self.admin.start()
        await self.nodes.start()
        return addresses

    async def stop(self, grace_s: float) -> None:
        """Take no new calls, and give those in work so many seconds."""
        if self.nodes is self.admin:
            await self.admin.stop(grace_s)
            return
        await asyncio.gather(self.admin.stop(grace_s), self.nodes.stop(grace_s))

    async def _renewed(self) -> Material:
        return await asyncio.to_thread(self._material)

    def _material(self) -> Material:
        settings = self._settings
        if self._own is not None:
            return self._own.at(self._clock())
        certificate, key, authority = settings.tls_cert, settings.tls_key, settings.tls_client_ca
        if certificate is None or key is None or authority is None:
            raise TlsFilesError("TOLLKEEPER_TLS=files needs TLS_CERT, TLS_KEY and TLS_CLIENT_CA")
        return material_in_files(certificate, key, authority)


def _hosts(host: str) -> tuple[str, ...]:
    """Return the addresses that a certificate of the own authority holds beside the one fixed name."""
    try:
        is_everything = ipaddress.ip_address(host).is_unspecified
    except ValueError:
        is_everything = False
    return (*(() if is_everything else (host,)), "localhost", "127.0.0.1", "::1")


def _bind(
    server: grpc.aio.Server, host: str, port: int, credentials: grpc.ServerCredentials | None
) -> str:
    shown = f"[{host}]" if ":" in host else host
    try:
        if credentials is None:
            bound = server.add_insecure_port(f"{shown}:{port}")
        else:
            bound = server.add_secure_port(f"{shown}:{port}", credentials)
    except RuntimeError:
        raise PortError(f"port {port} of {host} cannot be used: is it taken?") from None
    return f"{shown}:{bound}"
