"""Finds secrets where they must not be: on the wire, in files, in logs, and in what objects print of themselves."""

import asyncio
import base64
import gc
import os
import types
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import pytest

from tests.configuration.proxy import Proxy

_POLL_S: Final = 0.002
_OURS: Final = ("controlplane.", "dataplane.", "tollkeeper.")
# A secret may show its last four characters.
_SHOWN: Final = 4


class Tap(Proxy):
    """A proxy that remembers everything that passes, in both directions."""

    def __init__(self, address: str) -> None:
        """Pass on to `address`."""
        super().__init__()
        self.heard = bytearray()
        self.point_at(address)

    async def _pump(self, reader: Any, writer: Any, *, counts: bool) -> None:  # Any: streams
        await super()._pump(_Tapped(reader, self.heard), writer, counts=counts)  # type: ignore[arg-type] # all that is called


class _Tapped:
    def __init__(self, reader: asyncio.StreamReader, heard: bytearray) -> None:
        self._reader = reader
        self._heard = heard

    async def read(self, count: int) -> bytes:
        data = await self._reader.read(count)
        self._heard += data
        return data


@asynccontextmanager
async def tapping(address: str) -> AsyncIterator[Tap]:
    """Run a tap in front of an address."""
    tap = Tap(address)
    await tap.start()
    try:
        yield tap
    finally:
        await tap.stop()


def forms_of(secret: bytes) -> list[bytes]:
    """Return how a secret might be written: as it is, in hexadecimal digits, in base64 wherever it begins."""
    body = secret[:-_SHOWN]
    encoded = [base64.b64encode(b"\0" * shift + body)[4:-4] for shift in range(3)]
    return [body, body.hex().encode(), *encoded]


def found(secrets: Mapping[str, bytes], *places: tuple[str, bytes]) -> list[str]:
    """Return which secrets stand where."""
    return [
        f"{name} stands in {place}"
        for place, data in places
        for name, secret in secrets.items()
        if any(form in data for form in forms_of(secret))
    ]


class Written:
    """Everything that stood in files of some folders, however shortly."""

    def __init__(self, *folders: Path) -> None:
        """Watch `folders`."""
        self._folders = folders
        self._seen: dict[str, set[bytes]] = {}

    @property
    def places(self) -> list[tuple[str, bytes]]:
        """Return each content that any file had when it was looked at."""
        return [(name, data) for name, contents in self._seen.items() for data in contents]

    def look(self) -> None:
        """Read all files now."""
        for folder in self._folders:
            for path in folder.rglob("*"):
                try:
                    data = path.read_bytes() if path.is_file() else b""
                except OSError:  # It was temporary.
                    continue
                self._seen.setdefault(path.name, set()).add(data)

    @asynccontextmanager
    async def watching(self, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[None]:
        """Look again and again while the block runs, and at what is written by the descriptor."""
        write = os.write

        def noted(descriptor: int, data: Any) -> int:  # Any: whatever has bytes
            if len(data) > 1:
                self._seen.setdefault("what was written", set()).add(bytes(data))
            return write(descriptor, data)

        async def keep_looking() -> None:
            while True:
                self.look()
                await asyncio.sleep(_POLL_S)

        with monkeypatch.context() as patch:
            patch.setattr(os, "write", noted)
            task = asyncio.create_task(keep_looking())
            try:
                yield
            finally:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
        self.look()


def printed() -> list[tuple[str, bytes]]:
    """Return what every object of either plane prints of itself, by its class."""
    gc.collect()
    texts: dict[str, set[bytes]] = {}
    for each in gc.get_objects():
        kind = type(each)
        if not str(kind.__module__).startswith(_OURS) or isinstance(each, types.FunctionType):
            continue
        for show in (repr, str):
            text = _shown(show, each)
            texts.setdefault(f"{kind.__module__}.{kind.__qualname__}", set()).add(text)
    return [(name, text) for name, said in texts.items() for text in said]


def _shown(show: Callable[[object], str], each: object) -> bytes:
    try:
        return show(each).encode("utf-8", "replace")
    except Exception:  # half of an object that another test left
        return b""


def classes_in(places: Iterable[tuple[str, bytes]]) -> set[str]:
    """Return the names of the classes among what was printed."""
    return {name.rpartition(".")[2] for name, _ in places}
