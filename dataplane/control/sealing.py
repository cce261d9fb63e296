"""Opens secrets that are sealed to one stream, as `SecretBundle.sealed` in the contract says (RFC 9180)."""

from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite

from dataplane.domain.secret import Secret

_SUITE: Final = Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM)


class UnsealableError(Exception):
    """A secret was sealed to another key, for another credential or version, or was changed."""


class SealingKey:
    """A key of X25519 that lives as long as one stream and never leaves the process."""

    __slots__ = ("_private", "public")

    def __init__(self) -> None:
        """Make the key; `public` is what the other side seals to, 32 bytes."""
        self._private = X25519PrivateKey.generate()
        self.public = self._private.public_key().public_bytes_raw()

    def open(self, credential_id: str, version: int, sealed: bytes) -> Secret:
        """Return what is in `sealed`.

        Raises:
            UnsealableError: It was not sealed to this key for this version of this credential.
        """
        try:
            secret = _SUITE.decrypt(sealed, self._private, info_of(credential_id, version))
        except (InvalidTag, ValueError):
            # From None: neither the bytes nor what the library says of them belongs in a log.
            raise UnsealableError from None
        return Secret(secret)


def info_of(credential_id: str, version: int) -> bytes:
    """Return what binds a sealed secret to its credential."""
    return b"tollkeeper secret 1\0%s\0%d" % (credential_id.encode(), version)
