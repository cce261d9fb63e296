"""The last known good configuration, kept on disk under the node's key."""

import contextlib
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import msgspec
import structlog
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

FRAME_BYTES: Final = 1024 * 1024
CURRENT: Final = "snapshot"
PREVIOUS: Final = "snapshot.previous"

_MAGIC: Final = b"TKSNAP01"
_KEY_ID_BYTES: Final = 16
_FILE_ID_BYTES: Final = 16
_NONCE_BYTES: Final = 12
_TAG_BYTES: Final = 16
_HEADER_BYTES: Final = len(_MAGIC) + _KEY_ID_BYTES + _FILE_ID_BYTES
_FRAME_HEAD: Final = struct.Struct(f"<I?{_NONCE_BYTES}s")
_FRAME_PLACE: Final = struct.Struct("<Q?")
# Evidence for a person; more of it says nothing new.
_MAX_CORRUPT_FILES: Final = 10

_log: Final = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Contents:
    """A whole configuration as it was received.

    `resources` are (kind, id, revision, payload), `secrets` (credential id, version, secret).
    Neither is printed: payloads hold names, secrets are secret.
    """

    config_epoch: str
    revision: int
    digest: bytes
    resources: list[tuple[int, str, int, bytes]] = field(repr=False)
    secrets: list[tuple[str, int, bytes]] = field(repr=False)


class CorruptSnapshotError(Exception):
    """A file is not what was written."""


class WrongKeyError(CorruptSnapshotError):
    """A file was written under another node key."""


class SnapshotFile:
    """Two generations of `Contents` in one directory, encrypted and authenticated.

    Calls block on the disk: run them in a thread, one at a time.
    """

    def __init__(self, directory: Path, node_key: bytes) -> None:
        self._directory = directory
        self._key_id = _derive(node_key, b"tollkeeper snapshot key id v1", _KEY_ID_BYTES)
        self._aead = AESGCM(_derive(node_key, b"tollkeeper snapshot v1", 32))
        self._decoder = msgspec.msgpack.Decoder(Contents)

    def write(self, contents: Contents) -> None:
        """Make `contents` the newest generation, and the newest so far the older one.

        Whenever the process or the machine dies, one whole generation is there.

        Raises:
            OSError: The disk does not take it; the generations so far stay.
        """
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        current, temporary = self._directory / CURRENT, self._directory / f"{CURRENT}.tmp"
        try:
            temporary.unlink(missing_ok=True)
            # O_EXCL: never through a link that somebody else put there.
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            with open(os.open(temporary, flags, 0o600), "wb") as file:
                for part in self._sealed(msgspec.msgpack.encode(contents)):
                    file.write(part)
                file.flush()
                os.fsync(file.fileno())
        except OSError:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise
        with contextlib.suppress(FileNotFoundError):
            current.rename(self._directory / PREVIOUS)
        temporary.rename(current)
        _sync_directory(self._directory)

    def read(self) -> Contents | None:
        """Return the newest generation that is intact; None when there is none.

        A generation that is not intact is renamed, so that a person can look at it.
        """
        return next(self.generations(), None)

    def generations(self) -> Iterator[Contents]:
        """Yield those that are intact, newest first; each is read when it is asked for."""
        for name in (CURRENT, PREVIOUS):
            path = self._directory / name
            try:
                contents = self._opened(path.read_bytes())
            except FileNotFoundError:
                continue
            except WrongKeyError:
                _log.error("snapshot file was written under another node key", file=name)
            except CorruptSnapshotError as error:
                _log.error("snapshot file is corrupt", file=name, error=str(error))
            except OSError as error:
                _log.error("snapshot file cannot be read", file=name, error=repr(error))
                continue
            else:
                yield contents
                continue
            self._set_aside(path)

    def _sealed(self, plain: bytes) -> Iterator[bytes]:
        header = _MAGIC + self._key_id + os.urandom(_FILE_ID_BYTES)
        yield header
        view = memoryview(plain)
        for index, start in enumerate(range(0, len(view), FRAME_BYTES)):
            frame = view[start : start + FRAME_BYTES]
            is_last = start + FRAME_BYTES >= len(view)
            nonce = os.urandom(_NONCE_BYTES)
            place = header + _FRAME_PLACE.pack(index, is_last)
            sealed = self._aead.encrypt(nonce, frame, place)
            yield _FRAME_HEAD.pack(len(sealed), is_last, nonce)
            yield sealed

    def _opened(self, data: bytes) -> Contents:
        header = data[:_HEADER_BYTES]
        if len(header) < _HEADER_BYTES or not header.startswith(_MAGIC):
            raise CorruptSnapshotError("its head is not one of ours")
        if header[len(_MAGIC) : len(_MAGIC) + _KEY_ID_BYTES] != self._key_id:
            raise WrongKeyError
        try:
            return self._decoder.decode(b"".join(self._frames(header, memoryview(data))))
        except InvalidTag as error:
            raise CorruptSnapshotError("a frame was changed") from error
        except msgspec.DecodeError as error:
            # Authentic, so written by another version of this program; the text may quote it.
            raise CorruptSnapshotError("its contents have another form") from error

    def _frames(self, header: bytes, data: memoryview) -> Iterator[bytes]:
        start, index, is_last = _HEADER_BYTES, 0, False
        while not is_last:
            head = data[start : start + _FRAME_HEAD.size]
            if len(head) < _FRAME_HEAD.size:
                raise CorruptSnapshotError("it ends early")
            length, is_last, nonce = _FRAME_HEAD.unpack(head)
            start += _FRAME_HEAD.size
            sealed = data[start : start + length]
            if len(sealed) < length or not _TAG_BYTES < length <= FRAME_BYTES + _TAG_BYTES:
                raise CorruptSnapshotError("a frame has a wrong length")
            yield self._aead.decrypt(nonce, sealed, header + _FRAME_PLACE.pack(index, is_last))
            start, index = start + length, index + 1
        if start != len(data):
            raise CorruptSnapshotError("something follows its last frame")

    def _set_aside(self, path: Path) -> None:
        names = [
            path.with_name(f"{path.name}.corrupt-{n}") for n in range(1, _MAX_CORRUPT_FILES + 1)
        ]
        target = next((name for name in names if not name.exists()), names[-1])
        try:
            path.rename(target)
        except OSError as error:
            _log.error("corrupt snapshot file cannot be set aside", error=repr(error))


def _derive(node_key: bytes, purpose: bytes, length: int) -> bytes:
    return HKDF(algorithm=SHA256(), length=length, salt=None, info=purpose).derive(node_key)


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
