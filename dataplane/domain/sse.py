r"""Server-sent events: where they end in a stream of bytes, and what they carry.

Events end with a blank line: `\n\n` at OpenAI and Anthropic, `\r\n\r\n` at others (HTML Living
Standard, section 9.2.6). The gateway forwards the bytes it received; it only needs to know where
an event is whole, and to look into the few that carry usage or an error.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Final

from dataplane.domain.refusals import Reason, Refusal

# An event beyond this is no answer of a language model: images in events are about 2 MiB.
MAX_EVENT_BYTES: Final = 16 * 1024 * 1024
_ENDS: Final = (b"\n\n", b"\r\n\r\n", b"\r\r")


class EventSplitter:
    """Cuts a stream of bytes after its last whole event; the rest waits for more bytes."""

    __slots__ = ("_rest",)

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, chunk: bytes) -> bytes:
        """Return the whole events that are complete by now, as one run of the original bytes.

        Raises:
            Refusal: UPSTREAM_INVALID_RESPONSE when an event grows beyond 16 MiB.
        """
        data = self._rest + chunk if self._rest else chunk
        end = max(data.rfind(mark) + len(mark) if mark in data else 0 for mark in _ENDS)
        self._rest = data[end:]
        if len(self._rest) > MAX_EVENT_BYTES:
            raise Refusal(Reason.UPSTREAM_INVALID_RESPONSE, "The provider sent an endless event.")
        return data if end == len(data) else data[:end]

    def rest(self) -> bytes:
        """Return what is left when the stream ends: a last event without its blank line."""
        rest, self._rest = self._rest, b""
        return rest


def events_of(data: bytes) -> Iterator[bytes]:
    """Yield each whole event in `data`, its blank line included."""
    if b"\r" in data:
        yield from _events_with_any_line_end(data)
        return
    start = 0
    while (end := data.find(b"\n\n", start)) >= 0:
        yield data[start : end + 2]
        start = end + 2
    if start < len(data):
        yield data[start:]


def edited(events: bytes, marks: Sequence[bytes], edit: Callable[[bytes], bytes]) -> bytes:
    """Return `events` with each event that holds one of `marks` replaced by `edit(event)`.

    The others are passed over without a look: of an answer's hundreds of events two or three say
    something that the gateway needs.
    """
    if b"\r" in events:
        found = (
            edit(event) if any(mark in event for mark in marks) else event
            for event in events_of(events)
        )
        return b"".join(found)
    parts: list[bytes] = []
    start = 0
    while (at := _first_of(events, marks, start)) >= 0:
        begins = events.rfind(b"\n\n", start, at)
        begins = start if begins < 0 else begins + 2
        ends = events.find(b"\n\n", at)
        ends = len(events) if ends < 0 else ends + 2
        parts += (events[start:begins], edit(events[begins:ends]))
        start = ends
    parts.append(events[start:])
    return b"".join(parts)


def data_of(event: bytes) -> bytes:
    """Return the `data` of an event: its lines joined by a line feed; empty when it has none.

    `event:` may stand after `data:`, the space after the colon may be missing, and comments
    (`: …`) do not count.
    """
    lines = [
        line[6:] if line.startswith(b"data: ") else line[5:]
        for line in event.splitlines()
        if line.startswith(b"data:")
    ]
    return lines[0] if len(lines) == 1 else b"\n".join(lines)


def _first_of(data: bytes, marks: Sequence[bytes], start: int) -> int:
    found = [at for mark in marks if (at := data.find(mark, start)) >= 0]
    return min(found, default=-1)


def _events_with_any_line_end(data: bytes) -> Iterator[bytes]:
    event = b""
    for line in data.splitlines(keepends=True):
        event += line
        if not line.strip(b"\r\n"):
            yield event
            event = b""
    if event:
        yield event
