"""The authority between the planes, and the certificates that it signs. No I/O and no clock.

    authority (10 years) ── server certificate of a control plane (30 days, servers only)
                        └── certificate of a node (24 hours, clients only)

A node's certificate names it and the moment when it joined, in two URIs. So a certificate from before the node joined
anew, or was banned, opens nothing, although it has not ended yet.
"""

import ipaddress
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Final

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID, ObjectIdentifier

from controlplane.domain.errors import InvalidError

AUTHORITY_NAME: Final = "Tollkeeper authority"
SERVER_NAME: Final = "control-plane.tollkeeper.internal"
"""Every control plane's name in its certificate: callers check it, whatever the address is that they call."""

AUTHORITY_LIFETIME: Final = timedelta(days=3650)
SERVER_LIFETIME: Final = timedelta(days=30)
NODE_LIFETIME: Final = timedelta(hours=24)

# Clocks of hosts that are looked after differ by less; an older certificate is not taken for a newer one by this.
_SKEW: Final = timedelta(minutes=5)
_NODE_URI: Final = "tollkeeper://node/"
_ENROLLED_URI: Final = "tollkeeper://enrolled/"


class AuthorityError(Exception):
    """An authority's certificate and key cannot be used; the text holds neither."""


@dataclass(frozen=True, slots=True)
class NodeName:
    """What a node's certificate says: its id, and when it joined in Unix milliseconds."""

    node_id: str
    enrolled_at_ms: int


@dataclass(frozen=True, slots=True)
class Leaf:
    """A certificate with its key, both in PEM."""

    chain_pem: bytes
    key_pem: bytes = field(repr=False)
    expires_at: datetime


@dataclass(frozen=True, slots=True)
class Issued:
    """A certificate whose key is with whoever asked for it. `chain_pem` ends with the authority's certificate."""

    chain_pem: bytes
    serial: str
    expires_at: datetime


class Authority:
    """A certificate and the key that signs with it; it prints as its serial number."""

    __slots__ = ("_key", "certificate")

    def __init__(self, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> None:
        self.certificate = certificate
        self._key = key

    def __repr__(self) -> str:
        return f"Authority({self.certificate.serial_number:x})"

    def __reduce__(self) -> str:
        raise TypeError("an authority is not pickled")

    @classmethod
    def make(cls, now: datetime, lifetime: timedelta = AUTHORITY_LIFETIME) -> "Authority":
        """Return a new one, with a key of its own."""
        key = ec.generate_private_key(ec.SECP256R1())
        name = _named(AUTHORITY_NAME)
        usage = _key_usage(signs_certificates=True)
        builder = _builder(name, name, key.public_key(), now, lifetime)
        certificate = (
            builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(usage, critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False)
            .sign(key, SHA256())
        )
        return cls(certificate, key)

    @classmethod
    def load(cls, certificate_pem: bytes, key_pem: bytes) -> "Authority":
        """Return the one that these are.

        Raises:
            AuthorityError: They cannot be read, or do not belong together.
        """
        try:
            certificate = x509.load_pem_x509_certificate(certificate_pem)
            key = serialization.load_pem_private_key(key_pem, password=None)
        except (ValueError, UnsupportedAlgorithm):
            raise AuthorityError("the authority's certificate or key cannot be read") from None
        if not isinstance(key, ec.EllipticCurvePrivateKey) or (
            key.public_key() != certificate.public_key()
        ):
            raise AuthorityError("the authority's certificate and key do not belong together")
        return cls(certificate, key)

    @property
    def certificate_pem(self) -> bytes:
        """The certificate by which others know what this one signs."""
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    @property
    def certificate_der(self) -> bytes:
        """The same in DER."""
        return self.certificate.public_bytes(serialization.Encoding.DER)

    def key_pem(self) -> bytes:
        """Return the key, to be sealed."""
        return _pem_of(self._key)

    def server_certificate(
        self, hosts: Iterable[str], now: datetime, lifetime: timedelta = SERVER_LIFETIME
    ) -> Leaf:
        """Return a certificate, with a new key, of a control plane that is reached as `SERVER_NAME` or any of `hosts`."""
        key = ec.generate_private_key(ec.SECP256R1())
        names = [x509.DNSName(SERVER_NAME), *map(_host_name, dict.fromkeys(hosts))]
        certificate = self._sign(
            SERVER_NAME, key.public_key(), names, ExtendedKeyUsageOID.SERVER_AUTH, now, lifetime
        )
        chain = certificate.public_bytes(serialization.Encoding.PEM) + self.certificate_pem
        return Leaf(chain, _pem_of(key), certificate.not_valid_after_utc)

    def node_certificate(
        self,
        request_der: bytes,
        name: NodeName,
        now: datetime,
        lifetime: timedelta = NODE_LIFETIME,
    ) -> Issued:
        """Return a certificate of a node for the key in its request; nothing else of that is used.

        Raises:
            InvalidError: It is no PKCS#10 request with a P-256 key that signed it.
        """
        uris = [
            x509.UniformResourceIdentifier(f"{_NODE_URI}{name.node_id}"),
            x509.UniformResourceIdentifier(f"{_ENROLLED_URI}{name.enrolled_at_ms}"),
        ]
        certificate = self._sign(
            name.node_id,
            _key_in(request_der),
            uris,
            ExtendedKeyUsageOID.CLIENT_AUTH,
            now,
            lifetime,
        )
        chain = certificate.public_bytes(serialization.Encoding.PEM) + self.certificate_pem
        serial = f"{certificate.serial_number:x}"
        return Issued(chain, serial, certificate.not_valid_after_utc)

    def _sign(
        self,
        common_name: str,
        key: ec.EllipticCurvePublicKey,
        names: Sequence[x509.GeneralName],
        usage: ObjectIdentifier,
        now: datetime,
        lifetime: timedelta,
    ) -> x509.Certificate:
        issuer = self.certificate.subject
        above = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        return (
            _builder(_named(common_name), issuer, key, now, lifetime)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(signs_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
            .add_extension(above, critical=False)
            .sign(self._key, SHA256())
        )


def is_own_authority(certificate: x509.Certificate) -> bool:
    """Say whether a root is an authority of this kind, whose servers are all called `SERVER_NAME`."""
    return certificate.subject == _named(AUTHORITY_NAME)


def node_name_in(alternative_names: Iterable[str]) -> NodeName | None:
    """Return what a certificate's alternative names say of its node; None when it is no node's."""
    node_id, enrolled_at = "", ""
    for name in alternative_names:
        if name.startswith(_NODE_URI):
            node_id = name.removeprefix(_NODE_URI)
        elif name.startswith(_ENROLLED_URI):
            enrolled_at = name.removeprefix(_ENROLLED_URI)
    if not node_id or not enrolled_at.isdecimal():
        return None
    return NodeName(node_id, int(enrolled_at))


def end_of(certificate_pem: bytes) -> datetime:
    """Return when a certificate ends that a handshake has let pass; one that cannot be read has ended long ago."""
    try:
        return x509.load_pem_x509_certificate(certificate_pem).not_valid_after_utc
    except ValueError:
        return datetime.fromtimestamp(0, UTC)


def _key_in(request_der: bytes) -> ec.EllipticCurvePublicKey:
    refusal = InvalidError(
        "it must be a PKCS#10 request in DER that its own P-256 key signed",
        field="certificate_request",
    )
    try:
        request = x509.load_der_x509_csr(request_der)
        key = request.public_key()
        is_sound = request.is_signature_valid
    except (ValueError, UnsupportedAlgorithm):
        raise refusal from None
    if not isinstance(key, ec.EllipticCurvePublicKey) or not is_sound:
        raise refusal
    if not isinstance(key.curve, ec.SECP256R1):
        raise refusal
    return key


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePublicKey,
    now: datetime,
    lifetime: timedelta,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _SKEW)
        .not_valid_after(now + lifetime)
    )


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _named(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _host_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _pem_of(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
