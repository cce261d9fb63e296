"""Pin every dependency with its hashes in deploy/requirements.lock, or check that the pins still fit.

The lock holds what a production image installs: pyproject.toml's dependencies without extras, for
every platform and Python that we support. No address of a download is in it.
"""

import argparse
import hashlib
import subprocess
import sys
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
LOCK = ROOT / "deploy" / "requirements.lock"
_MARK = "# pyproject.toml dependencies, SHA-256: "


def wanted() -> list[str]:
    """Return the dependencies that pyproject.toml asks for."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return sorted(project["dependencies"])


def fingerprint() -> str:
    """Return what changes when pyproject.toml asks for something else."""
    return hashlib.sha256("\n".join(wanted()).encode()).hexdigest()


def write() -> None:
    """Resolve anew and write the lock."""
    command = [
        *(sys.executable, "-m", "uv", "pip", "compile", "--quiet", "--universal"),
        *("--python-version", "3.11", "--generate-hashes", "--no-header", "--no-annotate"),
        *("--no-emit-index-url", "--no-emit-find-links", str(ROOT / "pyproject.toml")),
    ]
    pins = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT).stdout
    LOCK.write_text(f"{_MARK}{fingerprint()}\n{pins}")


def problems() -> list[str]:
    """Say how the lock does not fit pyproject.toml; nothing when it does."""
    text = LOCK.read_text() if LOCK.exists() else ""
    if "://" in text:
        return ["it holds an address"]
    if not text.startswith(_MARK + fingerprint()):
        return ["pyproject.toml has changed since it was made; run `poe lock`"]
    entries = [
        entry
        for entry in text.split("\n\n")[-1].replace("\n    ", " ").splitlines()
        if "==" in entry
    ]
    pins = {canonicalize_name(entry.split("==")[0]): entry for entry in entries}
    found = [f"{name} has no hash" for name, entry in pins.items() if "--hash=sha256:" not in entry]
    for text_of_one in wanted():
        one = Requirement(text_of_one)
        entry = pins.get(canonicalize_name(one.name))
        if entry is None:
            found.append(f"{one.name} is not pinned")
        elif not one.specifier.contains(entry.split("==")[1].split()[0]):
            found.append(f"{one.name} is pinned outside of {one}")
    return found


def main() -> None:
    """Run as a program."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; fail on a difference")
    if not parser.parse_args().check:
        write()
    if found := problems():
        sys.exit("deploy/requirements.lock: " + "; ".join(found))


if __name__ == "__main__":
    main()
