"""What time it is for the limiter, between two answers of Redis."""

from dataplane.limits.operations import Reply


class ServerClock:
    """The clock of Redis as last seen, carried on by this process's monotonic clock."""

    def __init__(self) -> None:
        self._server_offset_ms = 0.0
        self._offset_ms = 0.0
        self.behind_ms = 0

    def saw(self, reply: Reply, monotonic_seconds: float) -> None:
        """Take over the times of the reply to a call that was sent at `monotonic_seconds`.

        Not when it arrived: a busy loop sees replies late, and a clock that is behind would make
        every admit seem to have waited too long. One that is ahead by a round trip does no harm.
        """
        self._server_offset_ms = reply.server_now_ms - monotonic_seconds * 1000
        self._offset_ms = reply.now_ms - monotonic_seconds * 1000
        self.behind_ms = reply.now_ms - reply.server_now_ms

    def server_ms(self, monotonic_seconds: float) -> int:
        """Return the server's own clock, for `not_after_ms`."""
        return int(self._server_offset_ms + monotonic_seconds * 1000)

    def now_ms(self, monotonic_seconds: float) -> int:
        """Return limiter time, for choosing periods."""
        return int(self._offset_ms + monotonic_seconds * 1000)
