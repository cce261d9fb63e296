"""Guards: how often something may be done, smoothed over time (GCRA).

A guard lets `burst` calls of a subject through at once, and after that one per emission interval. All
that is remembered of a subject is one instant, its *theoretical arrival time*: when it will have used
up nothing. Each call that is let through moves it on by one interval, and a call is let through while
that leaves it at most `burst` intervals ahead of now.

    burst 3, interval 10 s: calls at 0 s, 0 s, 0 s pass, a fourth waits until 10 s; after 30 s of
    silence three pass at once again
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Guard:
    """How often each subject may do one thing.

    Attributes:
        name: What is guarded; part of a Redis key, and shown to callers as the layer.
        burst: How many pass at once, at least 1.
        interval_ms: After how many milliseconds one more passes, at least 1.

    Raises:
        ValueError: A figure is below 1.
    """

    name: str
    burst: int
    interval_ms: int

    def __post_init__(self) -> None:
        if self.burst < 1 or self.interval_ms < 1:
            raise ValueError(f"the guard {self.name} lets nothing through")


@dataclass(frozen=True, slots=True)
class Check:
    """One subject before one guard. `subject` is an id or a digest, never a key, token or prompt."""

    guard: Guard
    subject: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """What several guards said together.

    Attributes:
        retry_after_ms: When all of them would let the call through, if nobody else calls; 0: now.
        binding: The one that takes longest; None when the call was let through, and counted.
    """

    retry_after_ms: int = 0
    binding: Check | None = None

    @property
    def is_admitted(self) -> bool:
        """Tell whether the call was let through."""
        return self.binding is None
