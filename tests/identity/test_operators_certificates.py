"""Certificates of the operator's own: who is a node, and what is refused."""

import asyncio
import ipaddress
import os
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.x509.oid import NameOID
from tollkeeper.admin.v1 import node_service_pb2 as node_pb

from controlplane.pki import server_tls
from controlplane.pki.certificates import SERVER_LIFETIME, Authority
from controlplane.pki.server_tls import OwnMaterial, ServerTls, TlsFilesError, material_in_files
from controlplane.server import StartError
from controlplane.settings import TlsMode
from dataplane.membership import Membership, membership
from tests.distribution.node import Node
from tests.identity.control_planes import BEARER, ControlPlane, clock_ms, running
from tests.identity.test_membership import follows, settings_of
from tests.rpc.admin_api import refused


@dataclass
class Pki:
    """An authority, and files of what it signs."""

    folder: Path
    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate

    @classmethod
    def make(cls, folder: Path) -> "Pki":
        folder.mkdir(exist_ok=True)
        key, name = ec.generate_private_key(ec.SECP256R1()), named("an operator's root")
        builder = unsigned(name, name, key.public_key())
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), True)
        made = cls(folder, key, builder.sign(key, SHA256()))
        made.root.write_bytes(made.certificate.public_bytes(serialization.Encoding.PEM))
        return made

    @property
    def root(self) -> Path:
        return self.folder / "root.pem"

    def sign(self, file: str, common_name: str, *dns: str) -> tuple[Path, Path]:
        """Write a certificate and its key; return their paths."""
        key = ec.generate_private_key(ec.SECP256R1())
        loopback = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
        names = [*map(x509.DNSName, dns), loopback]
        builder = unsigned(named(common_name), self.certificate.subject, key.public_key())
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        certificate, private = self.folder / f"{file}.pem", self.folder / f"{file}.key"
        certificate.write_bytes(
            builder.sign(self.key, SHA256()).public_bytes(serialization.Encoding.PEM)
        )
        private.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
        return certificate, private


def named(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def unsigned(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=5))
        .not_valid_after(now + timedelta(hours=1))
    )


@pytest.fixture
def pki(tmp_path: Path) -> Pki:
    return Pki.make(tmp_path / "pki")


def server_files(pki: Pki) -> dict[str, Any]:
    certificate, key = pki.sign("server", "control plane", "localhost")
    return {"tls_cert": certificate, "tls_key": key, "tls_client_ca": pki.root}


def as_operators(control_plane: ControlPlane, pki: Pki) -> ControlPlane:
    control_plane.authority_pem, control_plane.server_name = pki.root.read_bytes(), ""
    return control_plane


@pytest.mark.parametrize(
    ("common_name", "dns"),
    [("eu-1", ()), ("Data plane, Europe", ("eu-1",))],
    ids=["common name", "DNS name"],
)
async def test_a_node_is_called_what_its_certificate_says(
    data_dir: Path, tmp_path: Path, pki: Pki, common_name: str, dns: tuple[str, ...]
) -> None:
    certificate, key = pki.sign("node", common_name, *dns)
    async with running(data_dir, tls=TlsMode.FILES, **server_files(pki)) as started:
        control_plane = as_operators(started, pki)
        settings = settings_of(
            tmp_path / "node", control_plane, tls_cert=certificate, tls_key=key, ca=pki.root
        )
        async with membership(settings, clock_ms) as member:
            assert member.node_id == "eu-1"
            await follows(member, control_plane)
            async with member.channels.to(control_plane.node_address) as channel:
                with pytest.raises(grpc.aio.AioRpcError, match="cannot speak for eu-2"):
                    await Node(channel).hello("eu-2")

            await control_plane.ban("eu-1")

            with pytest.raises(grpc.aio.AioRpcError, match="banned"):
                await follows(member, control_plane)


async def test_a_certificate_of_another_root_is_no_nodes(
    data_dir: Path, tmp_path: Path, pki: Pki
) -> None:
    other = Pki.make(tmp_path / "other")
    certificate, key = other.sign("node", "eu-1")
    async with running(data_dir, tls=TlsMode.FILES, **server_files(pki)) as control_plane:
        settings = settings_of(
            tmp_path / "node", control_plane, tls_cert=certificate, tls_key=key, ca=pki.root
        )
        async with membership(settings, clock_ms) as member:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await follows(member, control_plane)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_a_control_plane_of_another_root_is_not_followed(
    data_dir: Path, tmp_path: Path, pki: Pki
) -> None:
    other = Pki.make(tmp_path / "other")
    certificate, key = pki.sign("node", "eu-1")
    async with running(data_dir, tls=TlsMode.FILES, **server_files(pki)) as control_plane:
        settings = settings_of(
            tmp_path / "node", control_plane, tls_cert=certificate, tls_key=key, ca=other.root
        )
        async with membership(settings, clock_ms) as member:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await follows(member, control_plane)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_nodes_with_certificates_of_the_operator_need_no_token(
    data_dir: Path, pki: Pki
) -> None:
    async with running(data_dir, tls=TlsMode.FILES, **server_files(pki)) as started:
        control_plane = as_operators(started, pki)
        request = node_pb.CreateJoinTokenRequest(addresses=["control.example.com:50051"])
        refusal = await refused(control_plane.nodes.CreateJoinToken(request, metadata=BEARER))

    assert refusal.code is grpc.StatusCode.FAILED_PRECONDITION
    assert "certificates of the operator" in refusal.message


async def test_files_that_do_not_belong_together_stop_the_start(data_dir: Path, pki: Pki) -> None:
    files = server_files(pki)
    _, other_key = pki.sign("other", "control plane")
    (pki.folder / "noise.pem").write_text("noise")
    for setting, value, says in (
        ("tls_key", other_key, "TOLLKEEPER_TLS_KEY is not the key of TOLLKEEPER_TLS_CERT"),
        ("tls_cert", pki.folder / "noise.pem", "TOLLKEEPER_TLS_CERT holds no certificate"),
        ("tls_key", pki.folder / "noise.pem", "TOLLKEEPER_TLS_KEY holds no key"),
        ("tls_client_ca", pki.folder / "noise.pem", "TOLLKEEPER_TLS_CLIENT_CA holds no"),
        ("tls_cert", pki.folder / "nothing", "TOLLKEEPER_TLS_CERT cannot be read"),
    ):
        with pytest.raises(StartError, match=says):
            async with running(data_dir, tls=TlsMode.FILES, **{**files, setting: value}):
                pass


async def test_files_that_were_replaced_are_used_without_a_restart(
    data_dir: Path, tmp_path: Path, pki: Pki, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nodes of the former root are refused then, those of the new one let in."""
    monkeypatch.setattr("controlplane.ports.INTERVAL_S", 0.05)
    other = Pki.make(tmp_path / "other")
    certificate, key = other.sign("node", "eu-1")
    files = server_files(pki)
    async with running(data_dir, tls=TlsMode.FILES, **files) as control_plane:
        settings = settings_of(
            tmp_path / "node", control_plane, tls_cert=certificate, tls_key=key, ca=pki.root
        )
        async with membership(settings, clock_ms) as member:
            with pytest.raises(grpc.aio.AioRpcError):
                await follows(member, control_plane)
            partial = tmp_path / "partial"
            partial.write_bytes(other.root.read_bytes())
            os.replace(partial, files["tls_client_ca"])

            async with asyncio.timeout(5):
                while not await is_let_in(member, control_plane):
                    pass


async def is_let_in(member: Membership, control_plane: ControlPlane) -> bool:
    try:
        await follows(member, control_plane)
    except grpc.aio.AioRpcError as error:
        return error.code() is not grpc.StatusCode.UNAVAILABLE
    return True


async def test_a_replacement_that_cannot_be_used_leaves_what_there_was(pki: Pki) -> None:
    files = server_files(pki)
    tls = ServerTls(material_in_files(*files.values()))
    before = tls._mutual
    files["tls_key"].write_text("noise")

    with pytest.raises(TlsFilesError):
        tls.replace(material_in_files(*files.values()))

    assert tls._mutual is before
    assert server_tls.INTERVAL_S == 60.0


def test_an_own_certificate_is_renewed_at_half_its_life_by_the_clock_and_when_that_was_set_back() -> (
    None
):
    """A host that was suspended for weeks, or that began with a clock of another year."""
    now = datetime.now(UTC)
    own = OwnMaterial(Authority.make(now - timedelta(days=400)), ("127.0.0.1",))
    first = own.at(now)

    assert own.at(now + SERVER_LIFETIME * 0.49) is first
    second = own.at(now + SERVER_LIFETIME * 0.51)
    third = own.at(now - timedelta(days=300))

    ends = [
        x509.load_pem_x509_certificates(each.chain_pem)[0].not_valid_after_utc
        for each in (first, second, third)
    ]
    assert ends[1] - ends[0] >= SERVER_LIFETIME * 0.5
    assert ends[2] < now
    assert len({each.key_pem for each in (first, second, third)}) == 3
