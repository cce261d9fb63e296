"""Whether this process is up, and whether it should get requests. No provider is ever called."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import msgspec

from dataplane.domain.refusals import Refusal
from dataplane.http.exchange import JSON_TYPE, HttpAnswer
from dataplane.pipeline import Pipeline

_ANSWERING: Final = "closed"
_JSON = (("content-type", JSON_TYPE), ("cache-control", "no-store"))


@dataclass(frozen=True, slots=True)
class Health:
    """What the health paths tell.

    `limits_state` says whether the counters can be asked: `closed` (they can), `open` (the breaker on
    Redis is), or `cold` (they wait for being rebuilt).
    """

    pipeline: Pipeline
    version: str
    limits_state: Callable[[], str]
    unreported_records: Callable[[], int]

    def about(self) -> HttpAnswer:
        """Answer `GET /`."""
        return _answer(200, {"name": "tollkeeper", "version": self.version, "status": "running"})

    def live(self) -> HttpAnswer:
        """Answer that the process is up."""
        return _answer(200, {"status": "healthy", "version": self.version})

    def ready(self) -> HttpAnswer:
        """Answer 200 when a configuration is applied, it can serve somebody and it is not draining.

        Losing the control plane alone never makes a process not ready. Losing the counters does, unless
        an organization is served without them: all replicas lose them together.
        """
        limits_state = self.limits_state()
        body: dict[str, object] = {
            "version": self.version,
            "limits": limits_state,
            "unreported_records": self.unreported_records(),
            "in_flight": self.pipeline.in_flight,
        }
        is_ready = limits_state == _ANSWERING and not self.pipeline.is_draining
        try:
            snapshot = self.pipeline.current.get()
        except Refusal as refusal:
            is_ready = False
            body["configuration"] = {"error": refusal.reason.value}
        else:
            if snapshot.has_fail_open and not self.pipeline.is_draining:
                is_ready = True
            body["configuration"] = {
                "revision": snapshot.position.revision,
                "age_ms": max(0, self.pipeline.clock_ms() - snapshot.applied_at_ms),
            }
        if self.pipeline.is_draining:
            body["draining"] = True
        body["status"] = "ready" if is_ready else "not_ready"
        return _answer(200 if is_ready else 503, body)


def _answer(status: int, body: dict[str, object]) -> HttpAnswer:
    headers = _JSON if status < 500 else (*_JSON, ("retry-after", "1"))
    return HttpAnswer(status, headers, msgspec.json.encode(body))
