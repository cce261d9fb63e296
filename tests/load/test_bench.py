import subprocess
import sys
from pathlib import Path

import pytest

from tests.load.bench import main, write
from tests.load.figures import Figure, Report
from tests.load.stack import ROOT

REPORT = Report(
    date="2026-11-21 12:00 UTC",
    commit="0123abc",
    python="3.11.7",
    cpu="Some CPU",
    cores=2,
    placement="The data plane alone",
    seconds_per_phase=10.0,
    layers=21,
    figures=(Figure("requests/s", 1234.5, "/s"),),
)


def test_runs_are_appended_below_one_heading(tmp_path: Path) -> None:
    path = tmp_path / "docs" / "benchmarks.md"

    write(REPORT, path)
    write(REPORT, path)

    text = path.read_text(encoding="utf-8")
    assert text.startswith("# Benchmarks\n")
    assert text.count("# Benchmarks") == 1
    assert text.count("## 2026-11-21 12:00 UTC, commit 0123abc") == 2
    assert "\n\n\n" not in text


@pytest.mark.parametrize("seconds", ["601", "nan", "many"])
def test_a_length_that_makes_no_sense_is_refused_before_anything_starts(
    seconds: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--seconds", seconds])

    assert ended.value.code == 2
    said = capsys.readouterr()
    assert "--seconds" in said.err
    assert said.out == ""


def test_the_program_refuses_it_too() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.load.bench", "--seconds", "0"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=20,
    )

    assert done.returncode == 2
    assert "--seconds" in done.stderr
    assert done.stdout == ""
