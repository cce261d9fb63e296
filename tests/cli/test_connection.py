"""Where the program connects, as whom, and what it says when that fails."""

import ipaddress
import json
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from controlplane.cli import channel
from controlplane.cli.connection import admin_settings, client_settings, is_loopback
from tests.cli.conftest import TOKEN, Run
from tests.cli.scripted import Refusal, ScriptedControlPlane, Silence, serving


@dataclass(frozen=True)
class Certificate:
    key: bytes
    pem: bytes


@pytest.fixture(scope="module")
def certificate() -> Certificate:
    """A certificate of the loopback address that vouches for itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "control plane of a test")])
    now = datetime.now(UTC)
    loopback = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    signed = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([loopback]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    return Certificate(
        key=key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        ),
        pem=signed.public_bytes(serialization.Encoding.PEM),
    )


@pytest.fixture
def tls_control_plane(certificate: Certificate) -> Iterator[ScriptedControlPlane]:
    with serving(
        grpc.ssl_server_credentials([(certificate.key, certificate.pem)])
    ) as control_plane:
        yield control_plane


@pytest.fixture
def closed_port() -> Iterator[int]:
    """A port that nothing listens on, and that nothing else can take."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield held.getsockname()[1]


def leave_credentials(folder: Path, **credentials: str) -> None:
    folder.mkdir()
    (folder / "credentials.json").write_text(json.dumps(credentials))


def test_the_token_goes_with_every_call(run: Run, control_plane: ScriptedControlPlane) -> None:
    assert run("org", "list").exit_code == 0
    assert control_plane.asked[0].metadata["authorization"] == f"Bearer {TOKEN}"


def test_the_token_may_come_from_a_file(
    program: Run,
    control_plane: ScriptedControlPlane,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    (tmp_path / "token").write_text("tka_from_a_file\n")
    monkeypatch.setenv("TOLLKEEPER_ADMIN_ADDRESS", control_plane.address)
    monkeypatch.setenv("TOLLKEEPER_ADMIN_TOKEN_FILE", str(tmp_path / "token"))

    assert program("org", "list").exit_code == 0
    assert control_plane.asked[0].metadata["authorization"] == "Bearer tka_from_a_file"


def test_what_dev_left_in_this_directory_is_used_without_settings(
    program: Run, control_plane: ScriptedControlPlane, tmp_path: Path
) -> None:
    leave_credentials(
        tmp_path / ".tollkeeper", admin_address=control_plane.address, admin_token="tka_dev"
    )

    assert program("org", "list").exit_code == 0
    assert control_plane.asked[0].metadata["authorization"] == "Bearer tka_dev"


def test_a_token_of_the_environment_never_goes_to_an_address_from_a_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    leave_credentials(
        tmp_path / ".tollkeeper",
        admin_address="127.0.0.1:1",
        admin_token="tka_dev",
        base_url="http://127.0.0.1:1",
        api_key="tk_dev",
    )
    monkeypatch.setenv("TOLLKEEPER_ADMIN_TOKEN", TOKEN)
    monkeypatch.setenv("TOLLKEEPER_API_KEY", "tk_mine")

    assert str(admin_settings().address) == "127.0.0.1:50051"
    assert client_settings().url == "http://127.0.0.1:8080"


def test_settings_do_not_show_their_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOLLKEEPER_ADMIN_TOKEN", TOKEN)
    monkeypatch.setenv("TOLLKEEPER_API_KEY", "tk_mine")

    assert TOKEN not in repr(admin_settings())
    assert "tk_mine" not in repr(client_settings())


def test_without_a_token_the_program_says_where_it_comes_from(program: Run) -> None:
    result = program("org", "list")

    assert result.exit_code == 1
    assert "TOLLKEEPER_ADMIN_TOKEN" in result.stderr


@pytest.mark.parametrize("document", ["{", "[]", "\udcff"])
def test_broken_credentials_of_dev_are_named(program: Run, tmp_path: Path, document: str) -> None:
    (tmp_path / ".tollkeeper").mkdir()
    (tmp_path / ".tollkeeper" / "credentials.json").write_bytes(
        document.encode(errors="surrogateescape")
    )

    result = program("org", "list")

    assert result.exit_code == 1
    assert "credentials.json" in result.stderr


@pytest.mark.parametrize(
    "address",
    [
        "control.example:50051",
        "10.0.0.1:50051",
        "localhost.example:50051",
        "[2001:db8::1]:50051",
        "0.0.0.0:50051",
    ],
)
def test_a_token_is_not_sent_in_clear_beyond_this_machine(
    program: Run, monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    monkeypatch.setenv("TOLLKEEPER_ADMIN_TOKEN", TOKEN)
    monkeypatch.setenv("TOLLKEEPER_ADMIN_ADDRESS", address)

    result = program("org", "list")

    assert result.exit_code == 1
    assert "not sent in clear" in result.stderr
    assert address in result.stderr
    assert TOKEN not in result.output


@pytest.mark.parametrize(
    "address",
    [
        "nowhere",
        ":1",
        "h:",
        "h:0",
        "h:65536",
        "http://h:1",
        "h:1/x",
        "unix:/tmp/x",
        "dns:///h:1",
        "ipv4:127.0.0.1:1,10.0.0.1:1",
        "user@h:1",
    ],
)
def test_what_is_no_address_is_wrong_usage(
    program: Run, monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    monkeypatch.setenv("TOLLKEEPER_ADMIN_TOKEN", TOKEN)
    monkeypatch.setenv("TOLLKEEPER_ADMIN_ADDRESS", address)

    result = program("org", "list")

    assert result.exit_code == 2
    assert "TOLLKEEPER_ADMIN_ADDRESS" in result.stderr


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("localhost", True),
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("127.0.0.1.example", False),
        ("0.0.0.0", False),  # noqa: S104 - nothing is bound
        ("10.0.0.1", False),
    ],
)
def test_a_host_is_known_to_be_this_machine(host: str, loopback: bool) -> None:
    assert is_loopback(host) is loopback


def test_a_control_plane_with_the_right_root_is_called_over_tls(
    program: Run,
    tls_control_plane: ScriptedControlPlane,
    certificate: Certificate,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    (tmp_path / "root.pem").write_bytes(certificate.pem)
    monkeypatch.setenv("TOLLKEEPER_ADMIN_TOKEN", TOKEN)
    monkeypatch.setenv("TOLLKEEPER_ADMIN_ADDRESS", tls_control_plane.address)
    monkeypatch.setenv("TOLLKEEPER_CA", str(tmp_path / "root.pem"))

    result = program("org", "list", "-o", "json")

    assert (result.exit_code, json.loads(result.stdout)) == (0, [])
    assert tls_control_plane.asked[0].metadata["authorization"] == f"Bearer {TOKEN}"


def test_a_root_means_tls_also_on_this_machine(
    run: Run,
    control_plane: ScriptedControlPlane,
    certificate: Certificate,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    (tmp_path / "root.pem").write_bytes(certificate.pem)
    monkeypatch.setenv("TOLLKEEPER_CA", str(tmp_path / "root.pem"))

    result = run("org", "list")

    assert result.exit_code == 1
    assert "TOLLKEEPER_CA" in result.stderr
    assert control_plane.asked == []


def test_a_root_that_cannot_be_read_is_named(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TOLLKEEPER_CA", str(tmp_path / "missing.pem"))

    result = run("org", "list")

    assert result.exit_code == 1
    assert "missing.pem" in result.stderr


def test_a_control_plane_that_is_away_is_named_with_what_to_check(
    program: Run, monkeypatch: pytest.MonkeyPatch, closed_port: int
) -> None:
    monkeypatch.setenv("TOLLKEEPER_ADMIN_TOKEN", TOKEN)
    monkeypatch.setenv("TOLLKEEPER_ADMIN_ADDRESS", f"127.0.0.1:{closed_port}")

    result = program("org", "list", "-o", "json")

    assert (result.exit_code, result.stdout) == (1, "")
    assert f"127.0.0.1:{closed_port}" in result.stderr
    assert "TOLLKEEPER_ADMIN_ADDRESS" in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_a_control_plane_that_is_silent_is_not_waited_for(
    run: Run, control_plane: ScriptedControlPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(channel, "DEADLINE_S", 0.2)
    control_plane.will_answer("CreateOrganization", Silence())

    result = run("org", "create", "acme")

    assert result.exit_code == 1
    assert "did not answer in time" in result.stderr
    assert control_plane.address in result.stderr


@pytest.mark.parametrize(
    ("refusal", "line"),
    [
        (
            Refusal(grpc.StatusCode.ALREADY_EXISTS, "acme exists", "CONFLICT"),
            "refused: conflict: acme exists",
        ),
        (
            Refusal(
                grpc.StatusCode.INVALID_ARGUMENT,
                "bad name",
                "INVALID_REQUEST",
                field="organization.name",
            ),
            "refused: invalid_request: bad name (field organization.name)",
        ),
        (
            Refusal(
                grpc.StatusCode.INVALID_ARGUMENT,
                "bad",
                "INVALID_REQUEST",
                bad_request_fields=("a", "b"),
            ),
            "refused: invalid_request: bad (field a, b)",
        ),
        (
            Refusal(grpc.StatusCode.PERMISSION_DENIED, "no"),
            "refused: permission_denied: no",
        ),
        (
            Refusal(grpc.StatusCode.UNAVAILABLE, "stopping", "DRAINING"),
            "refused: draining: stopping",
        ),
        (
            Refusal(grpc.StatusCode.INTERNAL, "one\ntwo\x1b[31m"),
            "refused: internal: one two [31m",
        ),
    ],
)
def test_a_refusal_is_one_line_on_stderr(
    run: Run, control_plane: ScriptedControlPlane, refusal: Refusal, line: str
) -> None:
    control_plane.will_answer("CreateOrganization", refusal)

    result = run("org", "create", "acme", "-o", "json")

    assert (result.exit_code, result.stdout, result.stderr) == (1, "", f"{line}\n")


def test_a_refused_secret_is_not_repeated(run: Run, control_plane: ScriptedControlPlane) -> None:
    control_plane.will_answer(
        "CreateCredential", Refusal(grpc.StatusCode.NOT_FOUND, "no such provider", "NOT_FOUND")
    )

    result = run("credential", "create", "acme/up/main", "--secret-stdin", stdin="sk-hunter2")

    assert result.exit_code == 1
    assert "hunter2" not in result.output
    assert TOKEN not in result.output
