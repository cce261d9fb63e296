"""What a spool has the disk do: its lock, and what waits for the disk in the spool's thread."""

import contextlib
import fcntl
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

import structlog

from dataplane.control.spool_segments import Segment, remove_files

_LOCK_FILE: Final = "lock"

_log: Final = structlog.get_logger(__name__)


class SpoolInUseError(Exception):
    """Another process has the directory; the text is one line for people."""


def lock(directory: Path) -> int:
    """Return a descriptor that has the directory until it is closed.

    Raises:
        SpoolInUseError: Another process has it.
        OSError: It cannot be written.
    """
    descriptor = os.open(directory / _LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise SpoolInUseError(f"usage spool {directory} is in use by another process") from error
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def sync_all(jobs: Sequence[tuple[int, bool]], directory: Path) -> None:
    """Sync descriptors, close those that are complete, and sync the directory."""
    for descriptor, is_complete in jobs:
        _sync_or_say(descriptor)
        if is_complete:
            os.close(descriptor)
    with contextlib.suppress(OSError):
        parent = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        _sync_or_say(parent)
        os.close(parent)


def replace_records(old: Path, new: Iterable[Path]) -> None:
    """Remove the records in `old` once those in `new`, all in one directory, outlive the host.

    Raises:
        OSError: The disk does not promise that, or cannot remove it; `old` stays.
    """
    for path in new:
        # One that is gone held nothing more that the ledger does not have.
        with contextlib.suppress(FileNotFoundError):
            _sync_path(path, os.O_RDONLY)
    _sync_path(old.parent, os.O_RDONLY | os.O_DIRECTORY)
    old.unlink(missing_ok=True)


def remove(segment: Segment, descriptor: int | None) -> None:
    """Close and remove a segment's files; one that cannot be is removed after a restart."""
    if descriptor is not None:
        os.close(descriptor)
    try:
        remove_files(segment)
    except OSError as error:
        _log.warning("usage_segment_not_removed", error=error.strerror)


def _sync_path(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_or_say(descriptor: int) -> None:
    try:
        os.fsync(descriptor)
    except OSError as error:
        # The process' promise holds: the bytes are the kernel's. The host's does not.
        _log.error("usage_spool_not_synced", error=error.strerror)
