"""A scripted control plane for the whole session, and the program as a function."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from controlplane.cli.app import app
from tests.cli.scripted import ScriptedControlPlane, serving

TOKEN = "tka_" + "0" * 43

Run = Callable[..., Result]


@pytest.fixture(scope="session")
def scripted_server() -> Iterator[ScriptedControlPlane]:
    with serving() as control_plane:
        yield control_plane


@pytest.fixture
def control_plane(
    scripted_server: ScriptedControlPlane,
) -> Iterator[ScriptedControlPlane]:
    scripted_server.asked.clear()
    scripted_server.answers.clear()
    yield scripted_server
    assert not any(scripted_server.answers.values()), "an answer was never asked for"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run each test in an empty directory, without settings of the developer's own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    for name in (
        "ADMIN_ADDRESS",
        "ADMIN_TOKEN",
        "ADMIN_TOKEN_FILE",
        "API_KEY",
        "API_KEY_FILE",
        "CA",
        "DATA_DIR",
        "DATABASE_URL",
        "DATABASE_URL_FILE",
        "URL",
    ):
        monkeypatch.delenv(f"TOLLKEEPER_{name}", raising=False)


@pytest.fixture
def program() -> Run:
    """The program, with a command line as arguments; it knows no control plane."""

    def run(*arguments: str, stdin: str | None = None) -> Result:
        return CliRunner().invoke(app, list(arguments), input=stdin, catch_exceptions=False)

    return run


@pytest.fixture
def run(program: Run, control_plane: ScriptedControlPlane, monkeypatch: pytest.MonkeyPatch) -> Run:
    """The program as an administrator of the scripted control plane."""
    monkeypatch.setenv("TOLLKEEPER_ADMIN_ADDRESS", control_plane.address)
    monkeypatch.setenv("TOLLKEEPER_ADMIN_TOKEN", TOKEN)
    return program


@pytest.fixture
def run_json(run: Run) -> Callable[..., Any]:
    """The program with `-o json`, as what it printed; it must have succeeded."""

    def run_and_read(*arguments: str, stdin: str | None = None) -> Any:  # Any: JSON
        result = run(*arguments, "-o", "json", stdin=stdin)
        assert result.exit_code == 0, result.stderr
        return json.loads(result.stdout)

    return run_and_read
