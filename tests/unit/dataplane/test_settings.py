import base64
import os
from pathlib import Path

import pytest

from dataplane.settings import Settings, SettingsError, read_settings

TOKEN = "j" * 32


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in list(os.environ):
        if name.startswith("TOLLKEEPER_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("TOLLKEEPER_REDIS_URL", "redis://:p4ss@127.0.0.1:1")
    monkeypatch.setenv("TOLLKEEPER_JOIN_TOKEN", TOKEN)
    return monkeypatch


def problem() -> str:
    with pytest.raises(SettingsError) as error:
        read_settings()
    text = str(error.value)
    assert "\n" not in text
    return text


def test_the_defaults_need_two_secrets_only(environment: pytest.MonkeyPatch) -> None:
    settings = read_settings()

    assert (settings.host, settings.port) == ("127.0.0.1", 8080)
    assert settings.control_plane == ("127.0.0.1:50051",)
    assert settings.node_key_bytes is None
    assert (settings.trusted_proxies, settings.client_ip_header) == ((), "x-forwarded-for")
    assert settings.cors_origins == ()
    assert "p4ss" not in repr(settings)
    assert TOKEN not in repr(settings)


def test_lists_are_split_at_commas(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("TOLLKEEPER_CONTROL_PLANE", "a:1, b:2,")
    environment.setenv("TOLLKEEPER_PRIVATE_UPSTREAMS", "10.0.0.0/8,::1")

    settings = read_settings()

    assert settings.control_plane == ("a:1", "b:2")
    assert settings.private_upstreams == ("10.0.0.0/8", "::1")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("TOLLKEEPER_PORT", "99999"),
        ("TOLLKEEPER_PORT", "http"),
        ("TOLLKEEPER_JOIN_TOKEN", "short"),
        ("TOLLKEEPER_JOIN_TOKEN", "tkj_" + "x" * 40),
        ("TOLLKEEPER_JOIN_TOKEN", "tkj_äöü" + "x" * 40),
        ("TOLLKEEPER_NODE_KEY", "not base64"),
        ("TOLLKEEPER_NODE_KEY", base64.b64encode(bytes(31)).decode()),
        ("TOLLKEEPER_NODE_ID", "has spaces"),
        ("TOLLKEEPER_PRIVATE_UPSTREAMS", "10.0.0.0/8,inner"),
        ("TOLLKEEPER_TRUSTED_PROXIES", "10.0.0.0/8,proxy.example.com"),
        ("TOLLKEEPER_TRUSTED_PROXIES", "10.0.0.0/33"),
        ("TOLLKEEPER_TRUSTED_PROXIES", "10.0.0.1:80"),
        ("TOLLKEEPER_TRUSTED_PROXIES", "*"),
        ("TOLLKEEPER_TRUSTED_PROXIES_FILE", "/etc/proxies"),
        ("TOLLKEEPER_CLIENT_IP_HEADER", "true-client-ip"),
        ("TOLLKEEPER_CLIENT_IP_HEADER", "x-forwarded-for, x-real-ip"),
        ("TOLLKEEPER_CORS_ORIGINS", "https://ok.example.com,https://"),
        ("TOLLKEEPER_LOG_LEVEL", "loud"),
        ("TOLLKEEPER_LOG_FORMAT", "xml"),
        ("TOLLKEEPER_REDIS_ULR", "redis://x"),
        ("TOLLKEEPER_PORT_FILE", "/etc/port"),
        ("TOLLKEEPER_NODE_KEY_FILE", "/nowhere/at/all"),
    ],
)
def test_a_bad_setting_stops_the_start_with_one_line_that_names_it(
    environment: pytest.MonkeyPatch, name: str, value: str
) -> None:
    environment.setenv(name, value)

    text = problem()

    assert name in text
    assert value not in text or value in name


def test_proxies_may_be_networks_or_addresses_of_both_families(
    environment: pytest.MonkeyPatch,
) -> None:
    environment.setenv("TOLLKEEPER_TRUSTED_PROXIES", "10.0.0.5/8, 192.0.2.7,fd00::/8,::1,")

    settings = read_settings()

    assert settings.trusted_proxies == ("10.0.0.0/8", "192.0.2.7/32", "fd00::/8", "::1/128")


@pytest.mark.parametrize("header", ["x-forwarded-for", "x-real-ip", "cf-connecting-ip"])
def test_the_header_of_the_clients_address_may_be_written_in_any_case(
    environment: pytest.MonkeyPatch, header: str
) -> None:
    environment.setenv("TOLLKEEPER_CLIENT_IP_HEADER", f" {header.title()} ")

    assert read_settings().client_ip_header == header


@pytest.mark.parametrize(
    ("written", "origins"),
    [
        ("", ()),
        ("*", ("*",)),
        ("https://app.example.com", ("https://app.example.com",)),
        (
            "http://localhost:5173, tauri://localhost",
            ("http://localhost:5173", "tauri://localhost"),
        ),
        ("capacitor://localhost,ionic://localhost", ("capacitor://localhost", "ionic://localhost")),
        ("chrome-extension://abcdefghijklmnop", ("chrome-extension://abcdefghijklmnop",)),
        ("HTTPS://App.Example.COM", ("https://app.example.com",)),
        ("https://app.example.com:443", ("https://app.example.com",)),
        ("http://app.example.com:443", ("http://app.example.com:443",)),
        ("http://[::1]:3000,http://127.0.0.1", ("http://[::1]:3000", "http://127.0.0.1")),
        ("http://[0:0::1]:80", ("http://[::1]",)),
        ("https://xn--bcher-kva.example", ("https://xn--bcher-kva.example",)),
    ],
)
def test_origins_are_kept_as_browsers_send_them(
    environment: pytest.MonkeyPatch, written: str, origins: tuple[str, ...]
) -> None:
    environment.setenv("TOLLKEEPER_CORS_ORIGINS", written)

    assert read_settings().cors_origins == origins


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ("https://app.example.com/", "nothing after it"),
        ("https://app.example.com/page", "nothing after it"),
        ("https://app.example.com?x", "nothing after it"),
        ("https://app.example.com#x", "nothing after it"),
        ("https://user:secret@app.example.com", "scheme://host"),
        ("app.example.com", "scheme://host"),
        ("//app.example.com", "scheme://host"),
        ("https:app.example.com", "scheme://host"),
        ("https://", "scheme://host"),
        ("https://a..b", "scheme://host"),
        ("https://a b", "scheme://host"),
        ("https://app.example.com:0", "scheme://host"),
        ("https://app.example.com:99999", "scheme://host"),
        ("https://app.example.com:", "scheme://host"),
        ("http://[::1", "scheme://host"),
        ("http://[::g]", "scheme://host"),
        ("http://[1:2]", "scheme://host"),
        ("https://b\u00fccher.example", "scheme://host"),
        ("https://*.example.com", "wildcard"),
        ("https://app.example.com:*", "wildcard"),
        ("*", "stands alone"),
        ("null", "null"),
        ("Null", "null"),
    ],
)
def test_what_no_browser_sends_as_an_origin_is_told_with_its_place(
    environment: pytest.MonkeyPatch, bad: str, reason: str
) -> None:
    environment.setenv("TOLLKEEPER_CORS_ORIGINS", f"https://ok.example.com, {bad}")

    text = problem()

    assert text.startswith("TOLLKEEPER_CORS_ORIGINS: ")
    assert "entry 2 must " in text
    assert reason in text
    assert "secret" not in text


@pytest.mark.parametrize("given", [("TLS_CERT",), ("TLS_KEY", "CA"), ("TLS_CERT", "CA")])
def test_an_operators_certificate_comes_with_its_key_and_its_root(
    environment: pytest.MonkeyPatch, given: tuple[str, ...]
) -> None:
    for name in given:
        environment.setenv(f"TOLLKEEPER_{name}", f"/etc/tls/{name}")

    assert "go together" in problem()


def test_a_node_without_any_proof_does_not_start(
    environment: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    environment.delenv("TOLLKEEPER_JOIN_TOKEN")
    environment.setenv("TOLLKEEPER_DATA_DIR", str(tmp_path))
    assert "TOLLKEEPER_JOIN_TOKEN" in problem()

    (tmp_path / "identity").write_bytes(b"")

    assert isinstance(read_settings(), Settings)


def test_several_problems_are_told_at_once(environment: pytest.MonkeyPatch) -> None:
    environment.delenv("TOLLKEEPER_REDIS_URL")
    environment.setenv("TOLLKEEPER_PORT", "-1")

    text = problem()

    assert "TOLLKEEPER_REDIS_URL" in text
    assert "TOLLKEEPER_PORT" in text


def test_settings_of_the_other_programs_are_no_problem(environment: pytest.MonkeyPatch) -> None:
    for name in ("TOLLKEEPER_MASTER_KEY_FILE", "TOLLKEEPER_ADMIN_TOKEN", "TOLLKEEPER_FIXTURES"):
        environment.setenv(name, "x")

    assert isinstance(read_settings(), Settings)


def test_a_secret_may_stand_in_a_file(environment: pytest.MonkeyPatch, tmp_path: Path) -> None:
    key = bytes(range(32))
    (tmp_path / "key").write_text(base64.b64encode(key).decode() + "\n")
    (tmp_path / "url").write_text("redis://:other@127.0.0.1:2\n")
    environment.setenv("TOLLKEEPER_NODE_KEY_FILE", str(tmp_path / "key"))
    environment.setenv("TOLLKEEPER_REDIS_URL_FILE", str(tmp_path / "url"))

    settings = read_settings()

    assert settings.node_key_bytes == key
    assert settings.redis_url.get_secret_value() == "redis://:other@127.0.0.1:2"


def test_a_file_that_is_no_text_is_a_problem(
    environment: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "key").write_bytes(b"\xff\xfe\x00")
    environment.setenv("TOLLKEEPER_NODE_KEY_FILE", str(tmp_path / "key"))

    assert "TOLLKEEPER_NODE_KEY_FILE" in problem()
