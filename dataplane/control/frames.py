"""The form of a file that is kept under the node's key: sealed frames, each in its one place.

A file is a header, in clear, and frames:

    header = magic · id of the key · id of the file · id of the file that it continues
    frame  = length, is it the last, nonce, checksum of these · sealed bytes

A frame is sealed (AES-256-GCM) under a key that only this file has, together with the header, its
number, whether it is the last, and the tag of the frame before. So a frame that was changed, moved,
left out, repeated or taken from another file does not open. What no seal can show is a file that
ends after a whole frame: where that matters, the last frame says that it is the last.

The checksum tells two ends apart: a frame whose rest never reached the disk (its length is believed,
and the file is shorter: torn, which a power cut explains) and bytes that were written otherwise.
"""

import os
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

MAGIC_BYTES: Final = 8
ID_BYTES: Final = 16
NO_FILE: Final = bytes(ID_BYTES)
HEADER_BYTES: Final = MAGIC_BYTES + 3 * ID_BYTES

_TAG_BYTES: Final = 16
_NONCE_BYTES: Final = 12
_HEAD: Final = struct.Struct(f"<I?{_NONCE_BYTES}s")
_CHECKSUM: Final = struct.Struct("<I")
_PLACE: Final = struct.Struct("<Q?")
_HEAD_BYTES: Final = _HEAD.size + _CHECKSUM.size
_READ_BYTES: Final = 1024 * 1024


class CorruptFileError(Exception):
    """A file is not what was written; the text says how, and quotes nothing of it."""


class WrongKeyError(CorruptFileError):
    """A file was written under another node key."""


class TornFileError(CorruptFileError):
    """The last frame did not reach the disk whole; all before it are as they were written."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where the next frame of a file goes.

    Attributes:
        header: The header of the file.
        number: How many frames come before.
        tag: The tag of the one before; the first follows none.
        offset: Bytes of the file before it.
    """

    header: bytes
    number: int = 0
    tag: bytes = b""
    offset: int = HEADER_BYTES

    @property
    def file_id(self) -> bytes:
        """Return the id of the file."""
        return self.header[MAGIC_BYTES + ID_BYTES : MAGIC_BYTES + 2 * ID_BYTES]

    @property
    def parent_id(self) -> bytes:
        """Return the id of the file that this one continues."""
        return self.header[MAGIC_BYTES + 2 * ID_BYTES :]

    def after(self, number_of_bytes: int, tag: bytes) -> "Place":
        """Return the place behind a frame of so many bytes here."""
        return Place(self.header, self.number + 1, tag, self.offset + number_of_bytes)


class FrameKey:
    """Makes and opens the frames of one sort of file, which `magic` (8 bytes) names."""

    def __init__(self, node_key: bytes, magic: bytes) -> None:
        self._node_key = node_key
        self._magic = magic
        self._key_id = _derived(node_key, b"", b"id of " + magic, ID_BYTES)

    def new_file(self, parent_id: bytes = NO_FILE) -> Place:
        """Return the first place of a new file, whose header is to be written first."""
        return Place(self._magic + self._key_id + os.urandom(ID_BYTES) + parent_id)

    def seal(self, place: Place, plain: bytes, *, is_last: bool = False) -> tuple[bytes, Place]:
        """Return the bytes of a frame, and the place behind it."""
        nonce = os.urandom(_NONCE_BYTES)
        sealed = self._aead(place).encrypt(nonce, plain, _bound(place, is_last))
        head = _HEAD.pack(len(sealed), is_last, nonce)
        frame = b"".join((head, _CHECKSUM.pack(zlib.crc32(head)), sealed))
        return frame, place.after(len(frame), sealed[-_TAG_BYTES:])

    def read_header(self, file: BinaryIO) -> Place:
        """Return the first place of a file that is at its beginning.

        Raises:
            TornFileError: It ends before its header does.
            WrongKeyError: It was written under another node key.
            CorruptFileError: It is no such file.
            OSError: It cannot be read.
        """
        header = _read(file, HEADER_BYTES)
        if not self._magic.startswith(header[:MAGIC_BYTES]):
            raise CorruptFileError("its head is not one of ours")
        if len(header) < HEADER_BYTES:
            raise TornFileError("it ends within its head")
        if header[MAGIC_BYTES : MAGIC_BYTES + ID_BYTES] != self._key_id:
            raise WrongKeyError("it was written under another node key")
        return Place(header)

    def frames(self, file: BinaryIO, place: Place) -> Iterator[tuple[bytes, bool, Place]]:
        """Yield (plain bytes, is it the last, the place behind it) of each frame from `place` on.

        One frame at a time is in memory.

        Raises:
            TornFileError: The file ends within a frame; all before it were yielded.
            CorruptFileError: A frame is not what was written.
            OSError: The file cannot be read.
        """
        aead, size = self._aead(place), os.fstat(file.fileno()).st_size
        while head := _read(file, _HEAD_BYTES):
            length, is_last, nonce = _opened_head(file, head)
            if place.offset + _HEAD_BYTES + length > size:
                raise TornFileError("it ends within a frame")
            sealed = _read(file, length)
            try:
                plain = aead.decrypt(nonce, sealed, _bound(place, is_last))
            except InvalidTag as error:
                if not any(sealed[-_TAG_BYTES:]) and not file.read(1):
                    raise TornFileError("its last frame was not written to its end") from error
                raise CorruptFileError(f"frame {place.number} was changed") from error
            place = place.after(_HEAD_BYTES + length, sealed[-_TAG_BYTES:])
            yield plain, is_last, place

    def _aead(self, place: Place) -> AESGCM:
        return AESGCM(_derived(self._node_key, place.file_id, self._magic, 32))


def _opened_head(file: BinaryIO, head: bytes) -> tuple[int, bool, bytes]:
    if len(head) < _HEAD_BYTES:
        raise TornFileError("it ends within the head of a frame")
    length, is_last, nonce = _HEAD.unpack_from(head)
    if _CHECKSUM.unpack_from(head, _HEAD.size)[0] == zlib.crc32(head[: _HEAD.size]):
        if length < _TAG_BYTES:
            raise CorruptFileError("no frame is so short")
        return length, is_last, nonce
    # A file system may have made the file longer without having written what it was made longer for.
    while not any(head):
        if not (head := file.read(_READ_BYTES)):
            raise TornFileError("its end was never written")
    raise CorruptFileError("the head of a frame was changed")


def _bound(place: Place, is_last: bool) -> bytes:
    return b"".join((place.header, _PLACE.pack(place.number, is_last), place.tag))


def _read(file: BinaryIO, count: int) -> bytes:
    data = file.read(count)
    while 0 < len(data) < count and (more := file.read(count - len(data))):
        data += more
    return data


def _derived(node_key: bytes, salt: bytes, purpose: bytes, length: int) -> bytes:
    info = b"tollkeeper kept " + purpose
    return HKDF(algorithm=SHA256(), length=length, salt=salt or None, info=info).derive(node_key)
