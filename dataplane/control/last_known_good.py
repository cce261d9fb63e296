"""Keeps the configuration in force on disk, so that a restart without a control plane serves."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

import structlog

from dataplane.control import snapshot_file
from dataplane.control.raw_resources import RawResource, RawSecret
from dataplane.control.snapshot_file import SnapshotFile
from dataplane.control.transfers import Contents
from dataplane.domain.digest import resource_hash
from dataplane.domain.secret import Secret
from dataplane.domain.snapshot import Position

_log = structlog.get_logger(__name__)


class LastKnownGood:
    """Writes the newest configuration in a thread; what came meanwhile is skipped, not queued."""

    def __init__(self, file: SnapshotFile) -> None:
        self._file = file
        self._newest: Contents | None = None
        self._writing: asyncio.Task[None] | None = None

    async def load(self) -> Contents | None:
        """Return what was kept, if something readable was."""
        return await asyncio.to_thread(self._read)

    async def offer(self, takes: Callable[[Contents], Awaitable[bool]]) -> bool:
        """Offer what was kept, newest first, until `takes` is true; return whether it was."""
        generations = self._file.generations()
        while (kept := await asyncio.to_thread(next, generations, None)) is not None:
            if await takes(await asyncio.to_thread(_from_file, kept)):
                return True
        return False

    def keep(self, contents: Contents) -> None:
        """Keep `contents` soon; must be called on the event loop."""
        self._newest = contents
        if self._writing is None or self._writing.done():
            self._writing = asyncio.create_task(self._write(), name="keep-configuration")

    async def aclose(self) -> None:
        """Return when the newest configuration is on disk."""
        if self._writing is not None:
            with contextlib.suppress(asyncio.CancelledError):
                await self._writing

    def _read(self) -> Contents | None:
        kept = self._file.read()
        return None if kept is None else _from_file(kept)

    async def _write(self) -> None:
        while self._newest is not None:
            contents, self._newest = self._newest, None
            try:
                await asyncio.to_thread(self._put, contents)
            except OSError as error:
                _log.error("configuration_not_kept", error=error.strerror)

    def _put(self, contents: Contents) -> None:
        self._file.write(_to_file(contents))


def _to_file(contents: Contents) -> snapshot_file.Contents:
    position = contents.position
    return snapshot_file.Contents(
        config_epoch=position.config_epoch,
        revision=position.revision,
        digest=position.digest,
        resources=[
            (each.kind, each.resource_id, each.revision, each.payload)
            for each in contents.resources.values()
        ],
        secrets=[
            (each.credential_id, each.version, each.secret.reveal())
            for each in contents.secrets.values()
        ],
    )


def _from_file(kept: snapshot_file.Contents) -> Contents:
    resources = {
        (kind, resource_id): RawResource(kind, resource_id, revision, payload)
        for kind, resource_id, revision, payload in kept.resources
    }
    secrets = {
        credential_id: RawSecret(credential_id, version, Secret(secret))
        for credential_id, version, secret in kept.secrets
    }
    # The next transfer may be a difference, or nothing at all: its digest starts from these.
    hashes = {
        key: resource_hash(raw.kind, raw.resource_id, raw.revision, raw.payload)
        for key, raw in resources.items()
    }
    position = Position(kept.config_epoch, kept.revision, kept.digest)
    return Contents(position, resources, secrets, hashes)
