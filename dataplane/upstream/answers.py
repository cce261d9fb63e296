"""What the pipeline asks of a provider's answer, whatever its dialect."""

from typing import Final, Protocol

from dataplane.domain.calls import Call, Usage
from dataplane.domain.refusals import Reason, Refusal
from dataplane.domain.routing import Attempt

# Stands in the event that ends an answer which the gateway cut, and says why.
STOP_FIELD: Final = "x-tollkeeper-stop"


class StreamReader(Protocol):
    """Reads one streamed answer on its way: bytes in, bytes for the caller out.

    Attributes:
        has_content: Something that the caller waits for has arrived; before that the answer can
            still become an error.
        is_complete: The provider said that the answer is whole.
        failure: An error event that the provider sent inside the stream, if one came.
    """

    has_content: bool
    is_complete: bool
    failure: Refusal | None

    def feed(self, chunk: bytes) -> bytes:
        """Take the next bytes; return what goes to the caller now: whole events."""

    def finish(self) -> bytes:
        """Take the end of the stream; return what is left for the caller."""

    def reported(self) -> Usage | None:
        """Return what the provider has reported so far, if anything."""

    def usage(self) -> Usage:
        """Return what was used so far: as reported, completed by counting where it was not."""

    def measured_output_tokens(self) -> int:
        """Return how many output tokens were passed on so far, by counting."""

    def is_ending(self) -> bool:
        """Return whether the provider said why the answer ended; what follows is no more of it.

        Then it is not to be cut: the caller would be told two ends, and reported usage be lost.
        """

    def cut_short(self) -> bytes:
        """Return the events that end the answer here as if it had reached its output cap.

        Nothing may be fed after it. `usage` says what was passed on.
        """


class Translator(Protocol):
    """Between a caller's dialect and a provider's."""

    path: str
    ping: bytes

    def body(self, call: Call, attempt: Attempt, output_cap_tokens: int | None) -> bytes:
        """Return the request body for the provider."""

    def headers(self, call: Call, attempt: Attempt) -> list[tuple[str, str]]:
        """Return the request headers for the provider, its credential included."""

    def stream_reader(self, call: Call) -> StreamReader:
        """Return a reader for one streamed answer."""

    def usage_of(self, call: Call, body: bytes) -> Usage:
        """Return what a whole answer reports, or an estimate that is marked as such.

        Raises:
            Refusal: UPSTREAM_INVALID_RESPONSE when the body is not an answer of the dialect.
        """


def provider_failed() -> Refusal:
    """Return the refusal for an error that a provider sends in place of an answer, or inside one."""
    return Refusal(Reason.UPSTREAM_ERROR, "The provider failed while it answered.")


def no_answer() -> Refusal:
    """Return the refusal for a 200 whose body is not of the dialect."""
    return Refusal(
        Reason.UPSTREAM_INVALID_RESPONSE, "The provider sent something that is no answer."
    )
