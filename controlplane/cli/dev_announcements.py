"""How a program says that it serves, and where.

By a line of JSON on its standard output, or by a file of JSON that it puts into its data directory.
"""

import asyncio
import contextlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

_POLL_S: Final = 0.02


@dataclass(frozen=True, slots=True)
class Announcement:
    """Where a program serves. The address may hold a password, so it is never printed with the rest."""

    port: int
    pid: int
    address: str = field(repr=False)


def read_announcement(text: str | bytes, pid: int) -> Announcement | None:
    """Return what a line or file of JSON announces, or None when it is no announcement.

    Args:
        text: An object with `url`, `base_url` or `admin_address`, and perhaps `port` and `pid`.
        pid: The process that was started, for programs that do not name theirs.
    """
    try:
        value = json.loads(text)
        address = str(value.get("url") or value.get("base_url") or value["admin_address"])
        port = int(value.get("port") or address.rpartition(":")[2])
        return Announcement(port=port, pid=int(value.get("pid") or pid), address=address)
    except (ValueError, KeyError, AttributeError, TypeError):
        return None


async def announced_in(ready_file: Path, pid: int) -> Announcement:
    """Wait until `ready_file` holds the announcement of process `pid`; the caller sets the deadline."""
    while True:
        with contextlib.suppress(OSError):
            # Some hundred bytes, just written: a thread would take longer than the read.
            announcement = read_announcement(ready_file.read_bytes(), pid)  # noqa: ASYNC240
            # A file of an earlier process that was killed names another one.
            if announcement is not None and announcement.pid == pid:
                return announcement
        await asyncio.sleep(_POLL_S)
