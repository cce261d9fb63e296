"""Looks for secrets in everything that a stack has written."""

import base64
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Final

from tests.e2e.stack import Secret, Stack

# Where a secret may stand, and only there: files that their owner alone can read.
ALLOWED: Final = {
    "the administrator's token": ("data/credentials.json", "data/secrets/admin-token"),
    "the first API key": ("data/credentials.json",),
    "the password of Redis": (
        "data/credentials.json",
        "data/redis/embedded.conf",
        "data/redis/password",
    ),
    "the join token": ("data/secrets/join-token",),
    "the master key": ("data/secrets/master-key",),
}


def leaks(stack: Stack, *more: Secret) -> list[str]:
    """Return each secret of `stack` with a file that holds it and must not.

    Each file below the stack's folder is searched, as bytes, for the text, its base64 and its hexadecimal form.
    """
    found: list[str] = []
    wanted = [(secret, tuple(_forms(secret.text))) for secret in (*stack.secrets, *more)]
    for path in _files(stack.folder):
        name = str(path.relative_to(stack.folder))
        content = path.read_bytes()
        for secret, forms in wanted:
            if any(form in content for form in forms) and not _may_stand_in(secret, path, name):
                found.append(f"{secret.name} stands in {name}")
    return found


def files_of(stack: Stack) -> list[str]:
    """Return the names of all files that would be searched."""
    return [str(path.relative_to(stack.folder)) for path in _files(stack.folder)]


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file())


def _may_stand_in(secret: Secret, path: Path, name: str) -> bool:
    allowed = any(fnmatch(name, pattern) for pattern in ALLOWED.get(secret.name, ()))
    return allowed and path.stat().st_mode & 0o077 == 0


def _forms(text: str) -> Iterator[bytes]:
    raw = text.encode()
    yield raw
    yield raw.hex().encode()
    yield raw.hex().upper().encode()
    # Base64 of a longer text that holds it: three ways to meet the groups of three bytes; the
    # characters at both ends depend on the neighbours and are left out.
    for encode in (base64.b64encode, base64.urlsafe_b64encode):
        for lead in range(3):
            encoded = encode(b"\0" * lead + raw).rstrip(b"=")
            yield encoded[4 if lead else 0 : len(encoded) // 4 * 4 - 4]
