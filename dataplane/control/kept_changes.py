"""The form of a change on the disk: parts, the last of which says the position after all of them.

A whole configuration is a change too, so a snapshot and a journal hold the same. Parts are small:
neither writing nor reading holds a second configuration, or the event loop for long. A change counts
when its last part is there, and its content has the digest of its position.
"""

from collections.abc import AsyncGenerator, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

import msgspec

from dataplane.control.frames import CorruptFileError
from dataplane.control.holdings import Change, Key
from dataplane.control.raw_resources import RawResource, RawSecret
from dataplane.control.slices import Slices
from dataplane.domain.digest import digest_of_sum, resource_hash
from dataplane.domain.secret import Secret
from dataplane.domain.snapshot import Position

# Encoded in well under a millisecond.
_PART_ENTRIES: Final = 500
_PART_BYTES: Final = 256 * 1024
_ARRAY_OF: Final = b"\xdd"  # MessagePack: an array, its length in four bytes.


class Part(msgspec.Struct, array_like=True):
    """Some of a change, as it is encoded; it does not print."""

    put: list[tuple[int, str, int, bytes]] = []
    removed: list[tuple[int, str]] = []
    secrets: list[tuple[str, int, bytes]] = []
    dropped_secrets: list[str] = []
    position: tuple[str, int, bytes] | None = None

    def __repr__(self) -> str:
        return "Part(…)"


_encode: Final = msgspec.msgpack.Encoder().encode
_decoder: Final = msgspec.msgpack.Decoder(list[Part])


async def encoded_parts(
    slices: Slices,
    position: Position,
    put: Iterable[RawResource],
    secrets: Iterable[RawSecret],
    removed: Iterable[Key] = (),
    dropped_secrets: Iterable[str] = (),
) -> AsyncGenerator[bytes, None]:
    """Yield the parts of a change, encoded on the event loop, which gets its turns in between.

    The arguments must not change meanwhile.
    """
    part, size = Part(), 0
    for raw in put:
        part.put.append((raw.kind, raw.resource_id, raw.revision, raw.payload))
        size += len(raw.payload)
        if len(part.put) >= _PART_ENTRIES or size >= _PART_BYTES:
            yield _encode(part)
            part, size = Part(), 0
            await slices.breathe()
    for key in removed:
        part.removed.append(key)
        if len(part.removed) >= _PART_ENTRIES:
            yield _encode(part)
            part = Part()
            await slices.breathe()
    for each in secrets:
        part.secrets.append((each.credential_id, each.version, each.secret.reveal()))
        if len(part.secrets) >= _PART_ENTRIES:
            yield _encode(part)
            part = Part()
            await slices.breathe()
    part.dropped_secrets.extend(dropped_secrets)
    part.position = (position.config_epoch, position.revision, position.digest)
    yield _encode(part)


def joined(parts: list[bytes]) -> bytes:
    """Return the plain bytes of a frame that holds these parts."""
    return b"".join((_ARRAY_OF, len(parts).to_bytes(4, "big"), *parts))


def parts_in(plain: bytes) -> list[Part]:
    """Return the parts in a frame.

    Raises:
        CorruptFileError: They have another form.
    """
    try:
        return _decoder.decode(plain)
    except msgspec.DecodeError as error:
        # Sealed, so written by another version of this program.
        raise CorruptFileError("its contents have another form") from error


@dataclass(slots=True)
class Fold:
    """A configuration that is put together from changes, each of them whole or not at all."""

    position: Position | None = None
    _resources: dict[Key, RawResource] = field(default_factory=dict, repr=False)
    _hashes: dict[Key, int] = field(default_factory=dict, repr=False)
    _secrets: dict[str, RawSecret] = field(default_factory=dict, repr=False)
    _total: int = 0
    _put: dict[Key, RawResource] = field(default_factory=dict, repr=False)
    _parts: list[Part] = field(default_factory=list, repr=False)

    def add(self, part: Part) -> bool:
        """Take a part; return whether it was the last of its change, which counts from now on.

        Raises:
            CorruptFileError: The change does not have its digest; it does not count.
        """
        for kind, resource_id, revision, payload in part.put:
            self._put[kind, resource_id] = RawResource(kind, resource_id, revision, payload)
        part.put.clear()
        self._parts.append(part)
        if part.position is None:
            return False
        self._commit(Position(*part.position))
        return True

    def change(self) -> Change:
        """Return all changes as one, of everything; the fold must not be used any more.

        Raises:
            CorruptFileError: There was no whole one.
        """
        if self.position is None:
            raise CorruptFileError("it ends early")
        return Change(
            position=self.position,
            put=self._resources,
            removed=frozenset(),
            secrets=self._secrets,
            dropped_secrets=frozenset(),
            hashes=self._hashes,
            is_everything=True,
        )

    def _commit(self, position: Position) -> None:
        put, parts = self._put, self._parts
        self._put, self._parts = {}, []
        hashes = {
            key: resource_hash(raw.kind, raw.resource_id, raw.revision, raw.payload)
            for key, raw in put.items()
        }
        gone = {key for part in parts for key in part.removed}
        removed = {key for key in gone if key in self._hashes and key not in put}
        total = self._total + sum(hashes.values()) - self._sum_of(hashes) - self._sum_of(removed)
        if digest_of_sum(total) != position.digest:
            raise CorruptFileError("its content does not have its digest")
        self._total, self.position = total, position
        if not self._resources:
            # Not copied: this is the whole configuration, in a moment when memory is short.
            self._resources, self._hashes = put, hashes
        else:
            for key in removed:
                del self._resources[key], self._hashes[key]
            self._resources.update(put)
            self._hashes.update(hashes)
        for part in parts:
            for credential_id in part.dropped_secrets:
                self._secrets.pop(credential_id, None)
            for credential_id, version, secret in part.secrets:
                self._secrets[credential_id] = RawSecret(credential_id, version, Secret(secret))

    def _sum_of(self, keys: Mapping[Key, int] | set[Key]) -> int:
        return sum(self._hashes.get(key, 0) for key in keys)
