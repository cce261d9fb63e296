"""What the mock provider counted since it started or was last reset."""

from dataclasses import dataclass


@dataclass(slots=True)
class Stats:
    """Counters of the calls that began after one reset.

    A call keeps the `Stats` it began with: one that outlives a reset neither disturbs the new
    counters nor drives `open_streams` below zero.

    Attributes:
        requests: Calls in a provider's dialect, refused and malformed ones included.
        open_streams: Streaming answers in progress, and calls that hang.
        cancelled_streams: Those that the client left before their end.
        bytes: Bytes of answers handed to the transport, heads included.
        input_tokens: Tokens of the accepted calls; 0 for one that was answered with an error.
        output_tokens: Tokens of the events and whole answers handed to the transport.
    """

    requests: int = 0
    open_streams: int = 0
    cancelled_streams: int = 0
    bytes: int = 0
    input_tokens: int = 0
    output_tokens: int = 0

    def as_json(self) -> dict[str, int]:
        """Return the counters under their wire names."""
        return {
            "requests": self.requests,
            "open_streams": self.open_streams,
            "cancelled_streams": self.cancelled_streams,
            "bytes": self.bytes,
            "input_tokens": self.input_tokens,
            "output_tokens": self.output_tokens,
        }
