"""Compile protos/ into generated/, or check that what is checked in is what the compiler makes."""

import argparse
import filecmp
import importlib.resources
import os
import shutil
import sys
import tempfile
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).resolve().parents[2]


def compile_into(target: Path) -> None:
    """Write modules, service stubs and type stubs of every proto below `target`."""
    protos = ROOT / "protos"
    # The plugins stand beside the interpreter, also when its environment is not activated.
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    files = sorted(str(path.relative_to(protos)) for path in protos.rglob("*.proto"))
    services = [name for name in files if name.endswith("_service.proto")]
    google = str(importlib.resources.files("grpc_tools") / "_proto")
    common = ["protoc", f"-I{protos}", f"-I{google}"]
    for arguments in (
        [*common, f"--python_out={target}", f"--mypy_out=quiet:{target}", *files],
        [*common, f"--grpc_python_out={target}", f"--mypy_grpc_out=quiet:{target}", *services],
    ):
        if protoc.main(arguments) != 0:
            sys.exit("the protos do not compile")
    packages = {path.parent for path in target.rglob("*.py")}
    for package in packages | {
        parent for p in packages for parent in p.parents if target in parent.parents
    }:
        (package / "__init__.py").write_text("")


def differences(made: Path, kept: Path) -> list[str]:
    """Name the files that differ, are missing or are left over."""
    names = {
        str(p.relative_to(base))
        for base in (made, kept)
        for p in base.rglob("*.py*")
        if p.suffix in {".py", ".pyi"}
    }
    return sorted(
        name
        for name in names
        if not (
            (made / name).exists()
            and (kept / name).exists()
            and filecmp.cmp(made / name, kept / name, shallow=False)
        )
    )


def main() -> None:
    """Run as a program."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; fail on a difference")
    check = parser.parse_args().check
    with tempfile.TemporaryDirectory() as folder:
        made, kept = Path(folder), ROOT / "generated"
        compile_into(made)
        stale = differences(made, kept)
        if check and stale:
            sys.exit(
                "generated/ is not what protos/ compile to; run `poe generate`: " + ", ".join(stale)
            )
        if not check:
            shutil.rmtree(kept, ignore_errors=True)
            shutil.copytree(made, kept)


if __name__ == "__main__":
    main()
