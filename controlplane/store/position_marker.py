"""How far an SQLite database was seen, in a file beside it: a database that is behind it was restored."""

import asyncio
import contextlib
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec
import structlog

FILE_NAME: Final = "config-position"

_log: Final = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class SeenPosition:
    """An epoch, and the highest revision that was committed in it."""

    config_epoch: str
    revision: int


class PositionMarker:
    """The file. It is read and written in a thread; a write replaces it whole."""

    def __init__(self, data_dir: Path) -> None:
        self._path = data_dir / FILE_NAME

    async def read(self) -> SeenPosition | None:
        """Return what it says; None when there is none, or none that can be read, which is logged."""
        return await asyncio.to_thread(self._read)

    async def write(self, seen: SeenPosition) -> None:
        """Replace it, on disk when this returns; a disk that fails is logged, and what was there before stays."""
        await asyncio.to_thread(self._write, seen)

    def _read(self) -> SeenPosition | None:
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=SeenPosition)
        except FileNotFoundError:
            return None
        except (OSError, msgspec.MsgspecError) as error:
            _log.warning("position file not read", error=type(error).__name__)
            return None

    def _write(self, seen: SeenPosition) -> None:
        temporary = ""
        try:
            descriptor, temporary = tempfile.mkstemp(dir=self._path.parent, prefix=f"{FILE_NAME}.")
            with open(descriptor, "wb") as file:
                file.write(msgspec.json.encode(seen))
                file.flush()
                os.fsync(file.fileno())
            Path(temporary).replace(self._path)
        except OSError as error:
            _log.warning("position file not written", error=type(error).__name__)
            with contextlib.suppress(OSError):
                Path(temporary).unlink(missing_ok=True)
