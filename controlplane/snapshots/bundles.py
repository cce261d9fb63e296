"""Secrets on their way to a node: sealed to a key that exists for the length of one stream.

HPKE (RFC 9180), as the comment of `SecretBundle.sealed` defines it. So a secret is in clear only inside the two
processes, also where something between them ends the connection's own encryption.
"""

from typing import Final

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PublicKey
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite
from tollkeeper.config.v1 import config_service_pb2 as pb

from controlplane.snapshots.opening import SealedSecret, SecretOpener

_SUITE: Final = Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM)
_PURPOSE: Final = b"tollkeeper secret 1"


class UnusableKeyError(ValueError):
    """Nothing can be sealed to a key; the text may be shown to who sent it."""


def check_sealing_key(key: bytes) -> None:
    """Do nothing if secrets can be sealed to `key`.

    Raises:
        UnusableKeyError: It is no public key of X25519, or one of those that agree on the same secret with everybody.
    """
    try:
        _SUITE.encrypt(b"", X25519PublicKey.from_public_bytes(key))
    except ValueError:
        raise UnusableKeyError("sealing_key is not a usable public key of X25519") from None


def info_of(credential_id: str, version: int) -> bytes:
    """Return what binds a sealed secret to the version of the credential that it belongs to."""
    return b"\0".join((_PURPOSE, credential_id.encode(), str(version).encode()))


class Bundler:
    """Makes the bundles of one stream."""

    def __init__(self, open_secret: SecretOpener, sealing_key: bytes | None) -> None:
        """Seal to `sealing_key`, a checked one; None: the node knows secrets in clear only."""
        self._open_secret = open_secret
        self._key = X25519PublicKey.from_public_bytes(sealing_key) if sealing_key else None

    def bundle(self, secret: SealedSecret) -> pb.SecretBundle | None:
        """Return a credential's secret as it travels, or None when it cannot be opened. Takes about 0.1 ms."""
        opened = self._open_secret(secret)
        if opened is None:
            return None
        bundle = pb.SecretBundle(credential_id=secret.credential_id, version=secret.version)
        if self._key is None:
            bundle.secret = opened
        else:
            info = info_of(secret.credential_id, secret.version)
            bundle.sealed = _SUITE.encrypt(opened, self._key, info=info)
        return bundle
