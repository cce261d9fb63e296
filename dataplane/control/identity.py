"""What a node proves itself with, and the file that keeps it over a restart."""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, TypeVar

import msgspec
from cryptography import x509
from cryptography.exceptions import InvalidTag, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.x509.oid import NameOID

IDENTITY_FILE: Final = "identity"
"""Where a node that joined keeps what it got, in its data directory."""

CONTROL_PLANE_NAME: Final = "control-plane.tollkeeper.internal"
"""What every control plane is called in certificates of the service's own authority."""

_MAGIC: Final = b"TKIDENT1"
_PLAIN: Final = b"\x00"
_SEALED: Final = b"\x01"
_NONCE_BYTES: Final = 12
_HEADER_BYTES: Final = len(_MAGIC) + 1


class IdentityError(Exception):
    """A node has no identity that it could use. One line for an operator, without secrets."""


@dataclass(frozen=True, slots=True)
class Identity:
    """A node's certificate with its key, and the authority by which it knows control planes; all in PEM.

    `server_name` is the name that a control plane must have; empty: that of the address that is called. Instants are in
    Unix milliseconds. `token_sha256` is that of the join token it came from; empty for an operator's certificate.
    """

    node_id: str
    chain_pem: bytes = field(repr=False)
    key_pem: bytes = field(repr=False)
    authority_pem: bytes = field(repr=False)
    issued_at_ms: int
    expires_at_ms: int
    server_name: str = CONTROL_PLANE_NAME
    token_sha256: bytes = field(default=b"", repr=False)

    @property
    def lifetime_ms(self) -> int:
        """How long the certificate holds from its issue on; at least 1."""
        return max(1, self.expires_at_ms - self.issued_at_ms)


@dataclass(frozen=True, slots=True)
class KeyRequest:
    """A new key of a node and the request for its certificate, in DER. A request is made once: signatures differ."""

    key_pem: bytes = field(repr=False)
    request_der: bytes = field(repr=False)
    token_sha256: bytes = field(default=b"", repr=False)

    @classmethod
    def make(cls, node_id: str, token_sha256: bytes = b"") -> "KeyRequest":
        """Return a request with a P-256 key."""
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, node_id)])
        request = x509.CertificateSigningRequestBuilder().subject_name(name).sign(key, SHA256())
        return cls(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            ),
            request.public_bytes(serialization.Encoding.DER),
            token_sha256,
        )


KeptT = TypeVar("KeptT", Identity, KeyRequest)


class IdentityFile:
    """A node's identity on its disk, encrypted under the node key where there is one. Calls block on the disk.

    Beside it, while a node joins, is the request that it joins with: an answer that was lost with the process can be had
    again by the same request only.
    """

    def __init__(self, data_dir: Path, node_key: bytes | None) -> None:
        self._path = data_dir / IDENTITY_FILE
        self._joining = data_dir / f"{IDENTITY_FILE}.joining"
        self._aead = None if node_key is None else AESGCM(_derived(node_key))

    def read(self) -> Identity | None:
        """Return what was kept; None when there is nothing.

        Raises:
            IdentityError: It cannot be read.
        """
        return self._read(self._path, Identity)

    def read_request(self) -> KeyRequest | None:
        """Return the request that a former process joined with; None when there is none, or it cannot be read."""
        try:
            return self._read(self._joining, KeyRequest)
        except IdentityError:
            return None

    def write_request(self, request: KeyRequest) -> None:
        """Keep a request before it is sent.

        Raises:
            OSError: The disk does not take it.
        """
        self._write(self._joining, msgspec.msgpack.encode(request))

    def write(self, identity: Identity) -> None:
        """Keep an identity in place of the one before; whole or not at all, whatever happens.

        Raises:
            OSError: The disk does not take it.
        """
        self._write(self._path, msgspec.msgpack.encode(identity))
        self._joining.unlink(missing_ok=True)

    def seal(self) -> None:
        """Encrypt what was kept in clear, before there was a node key; without one nothing happens.

        Raises:
            IdentityError: What was kept cannot be read.
            OSError: The disk does not take it; what was kept stays as it was.
        """
        content = _bytes_of(self._path)
        if self._aead is not None and content is not None and content.startswith(_MAGIC + _PLAIN):
            self._write(self._path, content[_HEADER_BYTES:])

    def _read(self, path: Path, kind: type[KeptT]) -> KeptT | None:
        content = _bytes_of(path)
        if content is None:
            return None
        if not content.startswith(_MAGIC):
            raise IdentityError(f"{path} is not an identity of a node")
        try:
            return msgspec.msgpack.decode(self._opened(path, content), type=kind)
        except msgspec.DecodeError:
            raise IdentityError(f"{path} is damaged: remove it and join again") from None

    def _opened(self, path: Path, content: bytes) -> bytes:
        header, body = content[:_HEADER_BYTES], content[_HEADER_BYTES:]
        if header == _MAGIC + _PLAIN:
            return body
        if self._aead is None:
            raise IdentityError(
                f"{path} is encrypted: set the TOLLKEEPER_NODE_KEY it was written under"
            )
        try:
            return self._aead.decrypt(body[:_NONCE_BYTES], body[_NONCE_BYTES:], header)
        except (InvalidTag, ValueError):
            raise IdentityError(
                f"{path} does not open with this TOLLKEEPER_NODE_KEY, or is damaged"
            ) from None

    def _write(self, path: Path, packed: bytes) -> None:
        if self._aead is None:
            content = _MAGIC + _PLAIN + packed
        else:
            header, nonce = _MAGIC + _SEALED, os.urandom(_NONCE_BYTES)
            content = header + nonce + self._aead.encrypt(nonce, packed, header)
        temporary = path.with_name(f"{path.name}.tmp")
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with open(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        directory = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)


def identity_in_files(certificate: Path, key: Path, authority: Path) -> Identity:
    """Read the certificate that an operator gave this node; blocks on the disk.

    Its id is the common name where that can be one, else the first such DNS name.

    Raises:
        IdentityError: A file cannot be read, the key is not the certificate's, or it names no node.
    """
    chain_pem, key_pem = _content(certificate, "TLS_CERT"), _content(key, "TLS_KEY")
    authority_pem = _content(authority, "CA")
    try:
        leaf = x509.load_pem_x509_certificates(chain_pem)[0]
        private = serialization.load_pem_private_key(key_pem, password=None)
        x509.load_pem_x509_certificates(authority_pem)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise IdentityError(
            "TOLLKEEPER_TLS_CERT, TLS_KEY and CA must be certificates and a key in PEM, without password"
        ) from None
    if private.public_key() != leaf.public_key():
        raise IdentityError("TOLLKEEPER_TLS_KEY is not the key of TOLLKEEPER_TLS_CERT")
    return Identity(
        node_id=_node_id_in(leaf),
        chain_pem=chain_pem,
        key_pem=key_pem,
        authority_pem=authority_pem,
        issued_at_ms=round(leaf.not_valid_before_utc.timestamp() * 1000),
        expires_at_ms=round(leaf.not_valid_after_utc.timestamp() * 1000),
        server_name="",
    )


def pem_of(certificate_der: bytes) -> bytes:
    """Return a certificate in PEM.

    Raises:
        IdentityError: It is none.
    """
    try:
        certificate = x509.load_der_x509_certificate(certificate_der)
    except ValueError:
        raise IdentityError("the authority in the join token is no certificate") from None
    return certificate.public_bytes(serialization.Encoding.PEM)


def check_pair(chain_pem: bytes, key_pem: bytes) -> None:
    """Check that a chain begins with the certificate of a key.

    Raises:
        IdentityError: It does not.
    """
    try:
        leaf = x509.load_pem_x509_certificates(chain_pem)[0]
        private = serialization.load_pem_private_key(key_pem, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise IdentityError("the control plane answered without a certificate") from None
    if private.public_key() != leaf.public_key():
        raise IdentityError("the control plane answered with a certificate of another key")


def check_authority(authority_pem: bytes) -> None:
    """Check that there is an authority to know control planes by.

    Raises:
        IdentityError: There is none.
    """
    try:
        x509.load_pem_x509_certificates(authority_pem)
    except ValueError:
        raise IdentityError("the control plane answered without an authority") from None


def span_ms_of(chain_pem: bytes) -> int:
    """Return for how long a certificate holds from its beginning to its end, whatever time it is here."""
    leaf = x509.load_pem_x509_certificates(chain_pem)[0]
    return round((leaf.not_valid_after_utc - leaf.not_valid_before_utc).total_seconds() * 1000)


def is_node_id(text: str) -> bool:
    """Say whether a node may be called this: 1 to 64 letters, digits, dots, dashes and underscores."""
    return 0 < len(text) <= 64 and all(
        each.isascii() and (each.isalnum() or each in "._-") for each in text
    )


def _node_id_in(leaf: x509.Certificate) -> str:
    names = [str(each.value) for each in leaf.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
    try:
        found = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName)
        names += found.value.get_values_for_type(x509.DNSName)
    except x509.ExtensionNotFound:
        pass
    for name in names:
        if is_node_id(name):
            return name
    raise IdentityError(
        "TOLLKEEPER_TLS_CERT names no node: neither its common name nor a DNS name is an id"
    )


def _bytes_of(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise IdentityError(f"{path} cannot be read: {error.strerror}") from None


def _content(path: Path, setting: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise IdentityError(f"TOLLKEEPER_{setting} cannot be read: {error.strerror}") from None


def _derived(node_key: bytes) -> bytes:
    return HKDF(SHA256(), 32, salt=None, info=b"tollkeeper node identity v1").derive(node_key)
