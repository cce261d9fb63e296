"""Reads a join token: where to join, with which secret, and by which authority a control plane is known.

The text is `tkj_` and MessagePack in base64url: `s` the secret, `c` the authority's certificate in DER, `a` addresses,
`n` the id of the node that may join with it, empty for any. Fields that are not known here are left aside.
"""

import base64
from dataclasses import dataclass, field
from typing import Final

import msgspec

PREFIX: Final = "tkj_"


@dataclass(frozen=True, slots=True)
class JoinToken:
    """What stands in a join token."""

    secret: str = field(repr=False)
    authority_der: bytes = field(repr=False)
    addresses: tuple[str, ...]
    node_id: str


class _Content(msgspec.Struct):
    s: str
    c: bytes
    a: tuple[str, ...]
    n: str = ""


def is_join_token(text: str) -> bool:
    """Say whether `text` is meant to be a token of this kind; it may still be damaged."""
    return text.startswith(PREFIX)


def read_join_token(text: str) -> JoinToken:
    """Return what stands in a token.

    Raises:
        ValueError: It is damaged; the error does not show it.
    """
    encoded = text.removeprefix(PREFIX)
    try:
        packed = base64.b64decode(
            encoded + "=" * (-len(encoded) % 4), altchars=b"-_", validate=True
        )
        content = msgspec.msgpack.decode(packed, type=_Content)
    except (ValueError, msgspec.DecodeError):
        raise ValueError("the join token is damaged: was all of it copied?") from None
    if not is_join_token(text) or not content.s or not content.c or not content.a:
        raise ValueError("the join token is damaged: was all of it copied?")
    return JoinToken(content.s, content.c, content.a, content.n)
