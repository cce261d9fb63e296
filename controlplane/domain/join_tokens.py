"""The text of a join token: `tkj_` and what a node needs to join, as MessagePack in base64url.

    s  the secret, 43 characters of base64url
    c  the authority's certificate in DER, by which the node knows the control plane
    a  where to join: a list of `host:port`
    n  the node that may join with it; empty for any

The authority travels inside, so that nobody in between can pose as a control plane.
"""

import base64
from typing import Final

import msgspec

PREFIX: Final = "tkj_"
SECRET_BYTES: Final = 32


def secret_text(secret: bytes) -> str:
    """Return the secret of a token from 32 random bytes, as a node presents it.

    Raises:
        ValueError: `secret` is not 32 bytes.
    """
    if len(secret) != SECRET_BYTES:
        raise ValueError(f"a secret is {SECRET_BYTES} bytes")
    return _base64url(secret)


def join_token(secret: str, authority_der: bytes, addresses: list[str], node_id: str = "") -> str:
    """Return the text of a token."""
    content = {"s": secret, "c": authority_der, "a": addresses, "n": node_id}
    return PREFIX + _base64url(msgspec.msgpack.encode(content))


def _base64url(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()
