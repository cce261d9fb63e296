"""What the benchmark asks its load generator to do, and what it hears back."""

from collections.abc import Mapping, Sequence
from typing import Final
from urllib.parse import urlsplit

import msgspec

PATH: Final = "/v1/chat/completions"
NOBODY: Final[Mapping[str, str]] = {}


class Target(msgspec.Struct, frozen=True):
    """Where requests go, as whom, and what a right answer to each is like.

    Attributes:
        credentials: Headers that say who calls; empty for nobody.
        body: The JSON that is sent.
        answer_bytes: Length of every right body of a whole answer; None for a stream.
        answer_events: Events in every right stream; 0 for a whole answer.
    """

    host: str
    port: int
    credentials: dict[str, str]
    body: str
    answer_bytes: int | None = None
    answer_events: int = 0

    def request(self) -> bytes:
        """Return the bytes of one request on a connection that stays open."""
        body = self.body.encode()
        credentials = "".join(f"{name}: {value}\r\n" for name, value in self.credentials.items())
        head = (
            f"POST {PATH} HTTP/1.1\r\nhost: {self.host}:{self.port}\r\n{credentials}"
            f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        )
        return head.encode() + body


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """One phase of load; each connection sends its next request when it has the last answer.

    Attributes:
        targets: Each gets `connections` connections of its own.
        takes_turns: Only one request at a time is under way, on one connection after the other.
        warmup_s: Load before the window that counts.
        seconds: Length of the window.
        ramp_s: The connections begin spread over this time.
        answer_deadline_s: An answer that takes longer is a failure.
        watched: Processes whose CPU time in the window is wanted, by name.
        core: The core whose busy time in the window is wanted.
    """

    targets: Sequence[Target]
    connections: int
    seconds: float
    warmup_s: float
    takes_turns: bool = False
    ramp_s: float = 0.0
    answer_deadline_s: float = 30.0
    watched: dict[str, int] = {}
    core: int | None = None


class Latencies(msgspec.Struct, frozen=True):
    """How long answers to one target took in the window, from sending to the last byte."""

    answers: int
    p50_ms: float
    p99_ms: float


class Outcome(msgspec.Struct, frozen=True):
    """What happened.

    Attributes:
        seconds: The real length of the window.
        answers: In the window; `sent` counts every request there was, warm-up included, by target.
        events: That arrived in the window, also those of streams that were not at their end.
        latencies: By target; one without answers has none.
        cpu_s: CPU seconds in the window, by the names of `Job.watched`, and of `load` itself.
        core_busy_s: What the watched core did in the window, whoever asked for it.
        failures: What was wrong; anything here makes the figures worthless.
    """

    seconds: float
    answers: int
    sent: list[int]
    events: int
    latencies: list[Latencies]
    cpu_s: dict[str, float]
    core_busy_s: float
    failures: list[str]

    @property
    def answers_per_s(self) -> float:
        """Answers per second."""
        return self.answers / self.seconds


def target(url: str, body: object, credentials: Mapping[str, str] = NOBODY) -> Target:
    """Return the target at `url` for `body`, with nothing known about its answers yet."""
    parts = urlsplit(url)
    if parts.hostname is None or parts.port is None:
        raise ValueError(f"{url!r} names no host and port")
    text = msgspec.json.encode(body).decode()
    return Target(parts.hostname, parts.port, dict(credentials), text)
