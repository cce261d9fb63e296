"""The environment of a control plane: what is taken, what is refused, and what is never shown."""

import base64
from pathlib import Path

import pytest

from controlplane.settings import SettingsError, load_settings
from tests.distribution.process import environment_of


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, str]:
    """A sufficient environment, in force."""
    given = environment_of(tmp_path)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    return given


def test_defaults_are_those_of_the_page(environment: dict[str, str], tmp_path: Path) -> None:
    settings = load_settings()

    defaults = settings.service_defaults
    assert defaults.daily_budget_nanousd == 50 * 10**9
    assert defaults.daily_requests == 10_000
    assert defaults.default_daily_requests == 1_000
    assert defaults.default_daily_tokens == 100_000
    assert defaults.default_monthly_spend_nanousd == 50 * 10**9
    assert settings.database == f"sqlite+aiosqlite:///{tmp_path / 'controlplane.sqlite'}"


def test_a_secret_may_stand_in_a_file(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "token"
    file.write_text("0123456789abcdef" * 3 + "\n")
    monkeypatch.delenv("TOLLKEEPER_JOIN_TOKEN")
    monkeypatch.setenv("TOLLKEEPER_JOIN_TOKEN_FILE", str(file))

    assert load_settings().join_token.get_secret_value() == "0123456789abcdef" * 3


def test_names_of_other_programs_are_known(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("REDIS_URL", "NODE_KEY_FILE", "ADMIN_TOKEN", "FIXTURES", "TEST_DATABASE_URL"):
        monkeypatch.setenv(f"TOLLKEEPER_{name}", "anything")

    load_settings()


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("TLS", "yes", "'off'"),
        ("NODE_PORT", "70000", "less than or equal to 65535"),
        ("TLS_CERT", "/etc/tls/server.pem", "is for TOLLKEEPER_TLS=files only"),
        ("HOST", "0.0.0.0", "loopback"),  # noqa: S104 # it is refused
        ("HOST", "controlplane.example.com", "loopback"),
        ("ADMIN_PORT", "70000", "less than or equal to 65535"),
        ("MASTER_KEY", base64.b64encode(b"k" * 31).decode(), "32 bytes"),
        ("MASTER_KEY", base64.b64encode(b"k" * 32).decode(), "must be random"),
        ("MASTER_KEY", "not base64", "32 bytes"),
        ("BOOTSTRAP_ADMIN_TOKEN", "tka_short", "43 characters"),
        ("BOOTSTRAP_ADMIN_TOKEN", "tka_" + "a" * 43, "must be random"),
        ("JOIN_TOKEN", "changeme-changeme-changeme-changeme-1234", "must be random"),
        ("JOIN_TOKEN", "é" * 40, "visible ASCII"),
        ("DATABASE_URL", "mysql://root:hunter2@db/x", "sqlite+aiosqlite"),
        ("DAILY_BUDGET_USD", "-1", "greater than or equal to 0"),
        ("DAILY_BUDGET_USD", "0.0000000001", "9 decimals"),
        ("DAILY_BUDGET_USD", "NaN", "finite"),
        ("MAX_REPLICAS", "0", "greater than or equal to 1"),
        ("SUPPORT_URL", "javascript:alert(1)", "http"),
        ("LOG_LEVEL", "loud", "'debug'"),
        ("JOIN_TOKEN_FILE", "/nonexistent/token", "both set"),
        ("DATABASE_URL_FILE", "/nonexistent/url", "cannot be read"),
        ("HOSTS", "127.0.0.1", "is not a setting"),
        ("PORT_FILES", "x", "is not a setting"),
    ],
)
def test_a_bad_value_is_refused_by_name_and_not_shown(
    environment: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    value: str,
    says: str,
) -> None:
    monkeypatch.setenv(f"TOLLKEEPER_{name}", value)

    with pytest.raises(SettingsError) as refused:
        load_settings()

    line = str(refused.value)
    assert says in line
    assert f"TOLLKEEPER_{name}" in line
    assert "\n" not in line
    assert value not in line or len(value) < 12


@pytest.mark.parametrize("host", ["0.0.0.0", "controlplane.example.com"])  # noqa: S104 # with TLS
def test_with_tls_any_host_may_be_listened_on_and_nodes_share_no_token(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    monkeypatch.setenv("TOLLKEEPER_TLS", "own")
    monkeypatch.setenv("TOLLKEEPER_HOST", host)
    monkeypatch.delenv("TOLLKEEPER_JOIN_TOKEN")

    settings = load_settings()

    assert (settings.host, settings.node_port) == (host, 50052)


def test_the_operators_certificates_are_named_completely(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOLLKEEPER_TLS", "files")
    monkeypatch.setenv("TOLLKEEPER_TLS_CERT", "/etc/tls/server.pem")

    with pytest.raises(SettingsError) as refused:
        load_settings()

    for name in ("TLS_KEY", "TLS_CLIENT_CA"):
        assert f"TOLLKEEPER_{name} is not set" in str(refused.value)


@pytest.mark.parametrize("name", ["DATA_DIR", "MASTER_KEY", "BOOTSTRAP_ADMIN_TOKEN", "JOIN_TOKEN"])
def test_what_has_no_default_must_be_set(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(f"TOLLKEEPER_{name}", "")

    with pytest.raises(SettingsError, match=f"TOLLKEEPER_{name} is not set"):
        load_settings()


def test_settings_do_not_print_secrets(environment: dict[str, str]) -> None:
    printed = repr(load_settings())

    for name in ("MASTER_KEY", "BOOTSTRAP_ADMIN_TOKEN", "JOIN_TOKEN"):
        assert environment[f"TOLLKEEPER_{name}"] not in printed
