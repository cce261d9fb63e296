"""The profile of a client: where it stands, who may read it, and what comes before it."""

import json
import os
import stat
from pathlib import Path

import pytest

from controlplane.cli.connection import find_client_settings
from controlplane.cli.profile import (
    ClientCredential,
    DeviceCredential,
    KeyCredential,
    Profile,
    ProfileError,
    prepared_path,
    profile_path,
    read_profile,
    remove_profile,
    write_profile,
)
from tests.cli.conftest import Run

KEY = KeyCredential("tk_live_abc")
DEVICE = DeviceCredential("abcdefghijkl", "tks_secret")
URL = "https://gateway.example"


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def leave(document: object, mode: int = 0o600) -> Path:
    path = prepared_path()
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    path.chmod(mode)
    return path


@pytest.mark.parametrize("credential", [KEY, DEVICE])
def test_what_is_written_is_read_again(credential: ClientCredential) -> None:
    profile = Profile(URL, credential)

    write_profile(Profile("https://former.example", KEY))
    write_profile(profile)

    assert read_profile() == profile


def test_the_file_has_the_promised_fields_and_is_its_owners_alone(tmp_path: Path) -> None:
    path = write_profile(Profile(URL, DEVICE))

    assert path == tmp_path / "config" / "tollkeeper" / "profile.json"
    assert json.loads(path.read_text()) == {
        "url": URL,
        "device_id": DEVICE.device_id,
        "session_token": DEVICE.session_token,
    }
    assert (mode_of(path), mode_of(path.parent)) == (0o600, 0o700)
    assert [entry.name for entry in path.parent.iterdir()] == ["profile.json"]


def test_a_folder_that_others_could_use_is_made_private_before_anything_is_written(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "config" / "tollkeeper"
    folder.mkdir(parents=True)
    folder.chmod(0o777)

    write_profile(Profile(URL, KEY))

    assert mode_of(folder) == 0o700


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o777])
def test_a_profile_that_others_can_read_is_refused_with_what_to_type(mode: int) -> None:
    path = leave({"url": URL, "api_key": "tk_1"}, mode)

    with pytest.raises(ProfileError, match=f"chmod 600 {path}"):
        read_profile()


def test_fields_of_a_later_release_do_no_harm() -> None:
    leave({"url": f"{URL}/", "api_key": "tk_1", "region": "eu", "more": {"of": ["it"]}})

    assert read_profile() == Profile(URL, KeyCredential("tk_1"))


@pytest.mark.parametrize(
    "document",
    [
        "{",
        "",
        "[" * 10_000,
        [],
        {"url": URL},
        {"url": URL, "device_id": "d"},
        {"api_key": "tk_1"},
        {"url": URL, "api_key": ""},
        {"url": URL, "api_key": "tk 1"},
        {"url": URL, "api_key": "tk_1\r\nx: y"},
        {"url": URL, "api_key": 7},
        {"url": "gateway.example", "api_key": "tk_1"},
        {"url": "https://u:p@gateway.example", "api_key": "tk_1"},
        {"url": "https://h:x", "api_key": "tk_1"},
        {"url": URL, "api_key": "tk_1", "more": "x" * 70_000},
    ],
)
def test_what_is_no_profile_is_named_and_not_shown(document: object) -> None:
    path = leave(document)

    with pytest.raises(ProfileError, match="does not hold a profile") as caught:
        read_profile()

    assert str(path) in str(caught.value)
    assert "tk_1" not in str(caught.value)


def test_without_a_profile_there_is_none() -> None:
    assert read_profile() is None
    assert remove_profile() is None


def test_a_removed_profile_is_gone_even_if_it_was_of_no_use() -> None:
    write_profile(Profile(URL, KEY))
    assert remove_profile() == Profile(URL, KEY)
    leave("{", 0o644)

    assert remove_profile() is None

    assert not profile_path().exists()


@pytest.mark.parametrize("configured", ["", "relative/path"])
def test_a_relative_configuration_directory_is_ignored(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, configured: str
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", configured)
    monkeypatch.setenv("HOME", str(tmp_path))

    assert profile_path() == tmp_path / ".config" / "tollkeeper" / "profile.json"


def test_a_failed_write_leaves_the_former_profile(monkeypatch: pytest.MonkeyPatch) -> None:
    write_profile(Profile(URL, KEY))

    def fsync(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(ProfileError, match="No space left"):
        write_profile(Profile(URL, DEVICE))

    assert read_profile() == Profile(URL, KEY)


def test_secrets_are_not_shown() -> None:
    shown = repr([Profile(URL, KEY), Profile(URL, DEVICE)])

    assert "tk_live" not in shown
    assert "tks_" not in shown


@pytest.mark.parametrize(
    ("environ", "url", "credential"),
    [
        ({}, URL, DEVICE),
        ({"URL": "http://e/"}, "http://e", DEVICE),
        ({"API_KEY": "tk_e"}, URL, KeyCredential("tk_e")),
        ({"URL": "http://e", "API_KEY": "tk_e"}, "http://e", KeyCredential("tk_e")),
    ],
)
def test_the_environment_comes_before_the_profile(
    monkeypatch: pytest.MonkeyPatch, environ: dict[str, str], url: str, credential: ClientCredential
) -> None:
    write_profile(Profile(URL, DEVICE))
    for name, value in environ.items():
        monkeypatch.setenv(f"TOLLKEEPER_{name}", value)

    settings = find_client_settings()

    assert (settings.url, settings.credential) == (url, credential)


def test_the_profile_comes_before_what_dev_left(tmp_path: Path) -> None:
    (tmp_path / ".tollkeeper").mkdir()
    left = {"base_url": "http://dev", "api_key": "tk_dev"}
    (tmp_path / ".tollkeeper" / "credentials.json").write_text(json.dumps(left))
    assert find_client_settings().url == "http://dev"

    write_profile(Profile(URL, KEY))

    settings = find_client_settings()
    assert (settings.url, settings.credential) == (URL, KEY)


def test_a_profile_is_not_even_opened_when_the_environment_says_everything(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    leave("{", 0o644)
    monkeypatch.setenv("TOLLKEEPER_URL", URL)
    monkeypatch.setenv("TOLLKEEPER_API_KEY", "tk_e")

    assert find_client_settings().credential == KeyCredential("tk_e")


def test_a_command_says_why_the_profile_is_refused(program: Run) -> None:
    path = leave({"url": URL, "api_key": "tk_secret"}, 0o644)

    result = program("chat", "Hi")

    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == f"{path} can be read by others: run `chmod 600 {path}`\n"
