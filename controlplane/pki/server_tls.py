"""What a control plane proves itself with on its ports, exchanged while it runs.

gRPC asks for the newest at every handshake, in threads of its own; connections that are open keep what they began with.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Final

import grpc
import structlog
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization

from controlplane.pki.certificates import SERVER_LIFETIME, Authority

# A file that an operator's tool replaced is in use after at most this. A certificate of the own authority is looked at as
# often: a host may have been suspended for weeks, or have had its clock set.
INTERVAL_S: Final = 60.0
_MAX_FILE_BYTES: Final = 1024 * 1024

_log: Final = structlog.get_logger(__name__)


class TlsFilesError(Exception):
    """Files of a certificate cannot be used. One line that names the setting."""


@dataclass(frozen=True, slots=True)
class Material:
    """A certificate with those above it, its key, and the authority whose client certificates are nodes; all in PEM."""

    chain_pem: bytes
    key_pem: bytes = field(repr=False)
    client_authority_pem: bytes


class ServerTls:
    """The newest `Material`, as credentials of servers."""

    def __init__(self, material: Material) -> None:
        self._material = material
        self._open = _configuration(material, with_nodes=False)
        self._mutual = _configuration(material, with_nodes=True)

    def replace(self, material: Material) -> None:
        """Use `material` from the next handshake on."""
        if material == self._material:
            return
        self._open = _configuration(material, with_nodes=False)
        self._mutual = _configuration(material, with_nodes=True)
        self._material = material

    def for_administrators(self) -> grpc.ServerCredentials:
        """Return credentials of a port that asks callers for no certificate."""
        return grpc.dynamic_ssl_server_credentials(self._open, lambda: self._open)

    def for_nodes(self) -> grpc.ServerCredentials:
        """Return credentials of a port that lets in whom the client authority has signed."""
        return grpc.dynamic_ssl_server_credentials(
            self._mutual, lambda: self._mutual, require_client_authentication=True
        )

    async def keep_fresh(
        self, renewed: Callable[[], Awaitable[Material]], interval_s: float
    ) -> None:
        """Take what `renewed` returns every `interval_s` seconds, until cancelled; what fails is logged and tried again."""
        while True:
            await asyncio.sleep(interval_s)
            try:
                self.replace(await renewed())
            except TlsFilesError as error:
                _log.error("certificate not renewed", problem=str(error))
            except Exception:  # task boundary: without it the certificate would end unseen
                _log.exception("certificate not renewed")


class OwnMaterial:
    """Server certificates of the service's own authority, which is that of the nodes too."""

    def __init__(self, authority: Authority, hosts: tuple[str, ...]) -> None:
        self._authority = authority
        self._hosts = hosts
        self._newest: tuple[datetime, Material] | None = None

    def at(self, now: datetime) -> Material:
        """Return the newest certificate until half its life is over; then, or when it was made after `now`, a new one."""
        if self._newest is not None:
            made_at, material = self._newest
            if made_at <= now < made_at + SERVER_LIFETIME / 2:
                return material
        leaf = self._authority.server_certificate(self._hosts, now)
        material = Material(leaf.chain_pem, leaf.key_pem, self._authority.certificate_pem)
        self._newest = now, material
        return material


def material_in_files(certificate: Path, key: Path, client_authority: Path) -> Material:
    """Read what an operator supplies; blocks on the disk.

    Raises:
        TlsFilesError: A file cannot be read, or the key is not the certificate's.
    """
    chain_pem = _read(certificate, "TLS_CERT")
    key_pem = _read(key, "TLS_KEY")
    client_pem = _read(client_authority, "TLS_CLIENT_CA")
    try:
        leaf = x509.load_pem_x509_certificates(chain_pem)[0]
    except ValueError:
        raise TlsFilesError("TOLLKEEPER_TLS_CERT holds no certificate in PEM") from None
    try:
        private = serialization.load_pem_private_key(key_pem, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise TlsFilesError("TOLLKEEPER_TLS_KEY holds no key in PEM without password") from None
    if private.public_key() != leaf.public_key():
        raise TlsFilesError("TOLLKEEPER_TLS_KEY is not the key of TOLLKEEPER_TLS_CERT")
    try:
        x509.load_pem_x509_certificates(client_pem)
    except ValueError:
        raise TlsFilesError("TOLLKEEPER_TLS_CLIENT_CA holds no certificate in PEM") from None
    return Material(chain_pem, key_pem, client_pem)


def _read(path: Path, setting: str) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(_MAX_FILE_BYTES)
    except OSError as error:
        raise TlsFilesError(f"TOLLKEEPER_{setting} cannot be read: {error.strerror}") from None


def _configuration(material: Material, *, with_nodes: bool) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration(
        [(material.key_pem, material.chain_pem)],
        root_certificates=material.client_authority_pem if with_nodes else None,
    )
