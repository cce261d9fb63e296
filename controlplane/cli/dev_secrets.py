"""The files that `tollkeeper dev` keeps: secrets, credentials, what was seeded, and the lock on them all.

Everything is written beside its place and renamed, so that a file is either whole or absent, and is readable by its
owner alone. One `dev` at a time owns a data directory.
"""

import base64
import contextlib
import fcntl
import json
import os
import secrets
import string
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

_BASE62: Final = string.digits + string.ascii_uppercase + string.ascii_lowercase
# 43 characters of base62 hold 256 bits.
_TOKEN_LENGTH: Final = 43


class InUseError(Exception):
    """Another `dev` owns the data directory."""


@dataclass(frozen=True, slots=True)
class SecretFiles:
    """Where each secret stands; programs are given these paths, never the text."""

    master_key: Path
    join_token: Path
    admin_token: Path
    # One per replica.
    node_keys: tuple[Path, ...]


def make_secrets(data_dir: Path, replicas: int) -> SecretFiles:
    """Return the secrets of `data_dir`, making those that do not exist yet; an existing one never changes."""
    folder = private_directory(data_dir / "secrets")
    return SecretFiles(
        master_key=_made_once(folder / "master-key", _new_key),
        join_token=_made_once(folder / "join-token", lambda: secrets.token_urlsafe(32)),
        admin_token=_made_once(folder / "admin-token", _new_administrator_token),
        node_keys=tuple(
            _made_once(folder / f"node-key-{number}", _new_key) for number in range(1, replicas + 1)
        ),
    )


def private_directory(path: Path) -> Path:
    """Return `path`, made as a directory of its owner alone if it did not exist."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    return path


@contextlib.contextmanager
def exclusive_use(data_dir: Path) -> Iterator[None]:
    """Own `data_dir` until the end of the block, or of this process, however it ends.

    Raises:
        InUseError: Another process owns it.
    """
    # Not inheritable (PEP 446): a child that outlived this process would go on holding the lock.
    descriptor = os.open(data_dir / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InUseError(f"another `tollkeeper dev` is using {data_dir}") from None
        yield
    finally:
        os.close(descriptor)


def write_private(path: Path, text: str) -> None:
    """Replace `path` by a file of its owner alone, whole or not at all."""
    beside = path.with_name(f"{path.name}.new")
    beside.unlink(missing_ok=True)
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with open(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    beside.rename(path)


def write_json(path: Path, value: Mapping[str, object]) -> None:
    """Replace `path` by `value` as JSON, readable by its owner alone."""
    write_private(path, json.dumps(value, indent=2) + "\n")


def read_json(path: Path) -> dict[str, Any]:  # Any: the fields of a JSON document
    """Return the object in `path`; empty when there is no such file or it is not an object."""
    try:
        value = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _made_once(path: Path, make: Callable[[], str]) -> Path:
    if path.exists():
        path.chmod(0o600)
    else:
        write_private(path, make())
    return path


def _new_key() -> str:
    return base64.b64encode(secrets.token_bytes(32)).decode()


def _new_administrator_token() -> str:
    return "tka_" + "".join(secrets.choice(_BASE62) for _ in range(_TOKEN_LENGTH))
