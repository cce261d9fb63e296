"""What control planes announce to each other: small JSON texts on one channel of the database.

A text of a kind or form that is not known here is of another version; it is skipped, like everything that was missed.
"""

from collections.abc import Iterable, Iterator
from enum import IntEnum
from typing import Final

import msgspec

CHANNEL: Final = "tollkeeper_control_planes"

# PostgreSQL takes 7,999 bytes; the rest is for the frame around the lines.
MAX_LINES_BYTES: Final = 7_700


class Told(IntEnum):
    """What is told of a node."""

    LIVE = 0
    APPLIED = 1
    ACKNOWLEDGED = 2
    KEPT = 3
    """It acknowledged the revocation, which is on its disk too."""


Line = tuple[str, str, int]
"""The id of the question, the id of the node, and what is told (`Told`)."""


class Question(msgspec.Struct, frozen=True, tag="ask", tag_field="is"):
    """Somebody waits on `control_plane_id` until nodes obey a change; see `peers.Ask`."""

    control_plane_id: str
    ask_id: str
    wait_ms: int
    config_epoch: str
    revision: int
    revocation: bytes = b""
    """A serialized `config.v1.Revocation`, or empty."""


class Answer(msgspec.Struct, frozen=True, tag="told", tag_field="is"):
    """What nodes on `control_plane_id` do, for one or several that asked."""

    control_plane_id: str
    lines: list[Line]


class Moved(msgspec.Struct, frozen=True, tag="moved", tag_field="is"):
    """Nodes came to `control_plane_id` or went, as the database says now."""

    control_plane_id: str


PeerMessage = Question | Answer | Moved

_decoder: Final[msgspec.json.Decoder[PeerMessage]] = msgspec.json.Decoder(PeerMessage)


def to_text(message: PeerMessage) -> str:
    """Encode a message."""
    return msgspec.json.encode(message).decode()


def from_text(payload: str) -> PeerMessage | None:
    """Decode a message; None for one that is not understood."""
    try:
        return _decoder.decode(payload)
    except msgspec.MsgspecError:
        return None


def answers(control_plane_id: str, lines: Iterable[Line]) -> Iterator[Answer]:
    """Put lines into as few messages as hold them, in their order."""
    taken: list[Line] = []
    size_bytes = 0
    for line in lines:
        line_bytes = len(msgspec.json.encode(line)) + 1
        if taken and size_bytes + line_bytes > MAX_LINES_BYTES:
            yield Answer(control_plane_id, taken)
            taken, size_bytes = [], 0
        taken.append(line)
        size_bytes += line_bytes
    if taken:
        yield Answer(control_plane_id, taken)
