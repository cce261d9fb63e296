"""Provider secrets at rest: envelope encryption with AES-256-GCM.

Each secret has a random data key of its own; the master key encrypts only data keys. Both layers are bound to the
credential's id and version, so that a row cannot be passed off as another one or as its own past. A sealed secret names
its master key by the first 4 bytes of SHA-256 of that key, so that several may be in use while one replaces another:

    1 byte format (1) | 4 bytes key id | 12 bytes nonce | 48 bytes wrapped data key | 12 bytes nonce | ciphertext and tag
"""

import base64
import hashlib
import os
from collections.abc import Sequence
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

KEY_BYTES: Final = 32
FINGERPRINT_BYTES: Final = 8

_FORMAT: Final = b"\x01"
_KEY_ID_BYTES: Final = 4
_NONCE_BYTES: Final = 12
_WRAPPED_BYTES: Final = KEY_BYTES + 16
_HEADER_BYTES: Final = 1 + _KEY_ID_BYTES
_PAYLOAD_AT: Final = _HEADER_BYTES + _NONCE_BYTES + _WRAPPED_BYTES
# Below this, four characters would be too much of the secret.
_LONG_ENOUGH_TO_HINT: Final = 16


class SealingError(Exception):
    """A secret cannot be opened, or a master key cannot be read. The text never holds either."""


class Secret:
    """A provider's secret. It prints as its last four characters at most; `reveal` is the only way to its text."""

    __slots__ = ("_value",)

    def __init__(self, value: bytes) -> None:
        self._value = value

    def reveal(self) -> bytes:
        """Return the secret, to be sent to the provider or to a node."""
        return self._value

    @property
    def fingerprint(self) -> bytes:
        """First 8 bytes of SHA-256 of the secret, to tell secrets apart in logs."""
        return hashlib.sha256(self._value).digest()[:FINGERPRINT_BYTES]

    def __repr__(self) -> str:
        if len(self._value) < _LONG_ENOUGH_TO_HINT:
            return "Secret(…)"
        return f"Secret(…{self._value[-4:].decode(errors='replace')})"

    __str__ = __repr__

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and self._value == other._value

    def __hash__(self) -> int:
        return hash(self._value)

    def __reduce__(self) -> str:
        raise TypeError("a secret is not pickled")


class MasterKey:
    """A key-encryption key; prints as its id."""

    __slots__ = ("_cipher", "key_id")

    def __init__(self, value: bytes) -> None:
        if len(value) != KEY_BYTES:
            raise SealingError(f"a master key is {KEY_BYTES} bytes in base64")
        self._cipher = AESGCM(value)
        self.key_id = hashlib.sha256(value).digest()[:_KEY_ID_BYTES]

    def __repr__(self) -> str:
        return f"MasterKey({self.key_id.hex()})"

    def wrap(self, data_key: bytes, bound_to: bytes) -> bytes:
        """Encrypt a data key; returns nonce and ciphertext."""
        nonce = os.urandom(_NONCE_BYTES)
        return nonce + self._cipher.encrypt(nonce, data_key, bound_to)

    def unwrap(self, wrapped: bytes, bound_to: bytes) -> bytes:
        """Decrypt a data key.

        Raises:
            InvalidTag: It was not wrapped by this key for this purpose.
        """
        return self._cipher.decrypt(wrapped[:_NONCE_BYTES], wrapped[_NONCE_BYTES:], bound_to)


def parse_master_keys(text: str) -> tuple[MasterKey, ...]:
    """Read a keyring: keys of 32 bytes in base64, separated by commas; the first one seals.

    Raises:
        SealingError: A key is missing or malformed; the error does not show it.
    """
    try:
        return tuple(
            MasterKey(base64.b64decode(part.strip(), validate=True)) for part in text.split(",")
        )
    except ValueError:
        raise SealingError(f"a master key is {KEY_BYTES} bytes in base64") from None


class Sealer:
    """Seals with the first master key, opens with any of them."""

    def __init__(self, keys: Sequence[MasterKey]) -> None:
        if not keys:
            raise SealingError("there is no master key")
        self._first = keys[0]
        self._by_id = {key.key_id: key for key in keys}

    def seal(self, credential_id: str, version: int, secret: Secret) -> bytes:
        """Return the secret in the form that may rest on a disk."""
        data_key = AESGCM.generate_key(bit_length=8 * KEY_BYTES)
        bound_to = _binding(credential_id, version)
        nonce = os.urandom(_NONCE_BYTES)
        header = _FORMAT + self._first.key_id
        wrapped = self._first.wrap(data_key, header + bound_to)
        return header + wrapped + nonce + AESGCM(data_key).encrypt(nonce, secret.reveal(), bound_to)

    def open(self, credential_id: str, version: int, sealed: bytes) -> Secret:
        """Return the secret of a credential at a version.

        Raises:
            SealingError: It was sealed by a master key that is not here, for another credential or version, or is
                damaged.
        """
        header, body = sealed[:_HEADER_BYTES], sealed[_PAYLOAD_AT:]
        key = self._by_id.get(header[1:])
        if header[:1] != _FORMAT or key is None:
            raise SealingError(f"credential {credential_id} is sealed by an unknown master key")
        bound_to = _binding(credential_id, version)
        try:
            data_key = key.unwrap(sealed[_HEADER_BYTES:_PAYLOAD_AT], header + bound_to)
            nonce, ciphertext = body[:_NONCE_BYTES], body[_NONCE_BYTES:]
            return Secret(AESGCM(data_key).decrypt(nonce, ciphertext, bound_to))
        except (InvalidTag, ValueError):
            raise SealingError(f"credential {credential_id} cannot be opened") from None

    def is_current(self, sealed: bytes) -> bool:
        """Say whether the first master key sealed this; if not, it should be sealed anew."""
        return sealed[:_HEADER_BYTES] == _FORMAT + self._first.key_id


def _binding(credential_id: str, version: int) -> bytes:
    # The id's length comes first, so that no id and version can read as another pair.
    encoded = credential_id.encode()
    return b"tollkeeper credential" + len(encoded).to_bytes(4) + encoded + version.to_bytes(8)
