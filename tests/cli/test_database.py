"""`db`: the schema of a real database."""

import json
from pathlib import Path

import pytest

from tests.cli.conftest import Run


def test_a_database_is_upgraded_and_says_where_it_stands(
    program: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TOLLKEEPER_DATABASE_URL", f"sqlite+aiosqlite:///{tmp_path}/ours.sqlite")

    before = json.loads(program("db", "current", "-o", "json").stdout)
    upgraded = program("db", "upgrade", "-o", "json")
    again = program("db", "upgrade")
    after = json.loads(program("db", "current", "-o", "json").stdout)

    assert before["current"] is None
    assert (upgraded.exit_code, again.exit_code) == (0, 0)
    assert after["current"] == after["head"] == before["head"]
    assert json.loads(upgraded.stdout) == after


def test_looking_at_a_database_does_not_make_one(program: Run, tmp_path: Path) -> None:
    assert program("db", "current").exit_code == 0
    assert list(tmp_path.iterdir()) == []


def test_the_database_of_the_data_directory_is_taken_without_a_url(
    program: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "data").mkdir()
    monkeypatch.setenv("TOLLKEEPER_DATA_DIR", str(tmp_path / "data"))

    assert program("db", "upgrade").exit_code == 0
    assert (tmp_path / "data" / "controlplane.sqlite").exists()


@pytest.mark.parametrize(
    "url", ["nonsense hunter2", "sqlite+nothing:///hunter2", "oracle://u:hunter2@127.0.0.1:1/db"]
)
def test_a_url_that_leads_nowhere_is_a_failure_without_its_password(
    program: Run, monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    monkeypatch.setenv("TOLLKEEPER_DATABASE_URL", url)

    result = program("db", "upgrade")

    assert result.exit_code == 1
    assert len(result.stderr.splitlines()) == 1
    assert "hunter2" not in result.output


def test_a_database_server_that_is_away_is_a_failure_without_its_password(
    program: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOLLKEEPER_DATABASE_URL", "postgresql+asyncpg://u:hunter2@127.0.0.1:1/db")

    result = program("db", "current")

    assert result.exit_code == 1
    assert "hunter2" not in result.output
