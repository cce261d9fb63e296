"""Whether this process is up, and whether it should get requests. No provider is ever called."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import msgspec

from dataplane.domain.refusals import Reason, Refusal
from dataplane.domain.staleness import Staleness
from dataplane.freshness import Freshness
from dataplane.http.exchange import JSON_TYPE, HttpAnswer
from dataplane.pipeline import Pipeline

_ANSWERING: Final = "closed"
_OPEN: Final = "open"
_EXPIRED: Final = "no control plane was heard for a day: the configuration is served all the same"
_JSON = (("content-type", JSON_TYPE), ("cache-control", "no-store"))


@dataclass(frozen=True, slots=True)
class Health:
    """What the health paths tell.

    `limits_state` says whether the counters can be asked: `closed` (they can), `open` (the breaker on
    Redis is), or `cold` (they wait for being rebuilt). Without `freshness` nothing is said of the control plane.
    """

    pipeline: Pipeline
    version: str
    limits_state: Callable[[], str]
    unreported_records: Callable[[], int]
    freshness: Freshness | None = None

    def about(self) -> HttpAnswer:
        """Answer `GET /`."""
        return _answer(200, {"name": "tollkeeper", "version": self.version, "status": "running"})

    def live(self) -> HttpAnswer:
        """Answer that the process is up."""
        return _answer(200, {"status": "healthy", "version": self.version})

    def ready(self) -> HttpAnswer:
        """Answer 200 when a configuration is applied, it can serve somebody and it is not draining.

        Losing the control plane alone never makes a process not ready, however long: what it serves is stale then, and
        expired after a day, which is a warning. Losing the counters does, unless an organization is served without
        them: all replicas lose them together. `code` says why it is not, in the words of refusals.
        """
        limits_state = self.limits_state()
        body: dict[str, object] = {
            "version": self.version,
            "limits": limits_state,
            "redis": "unavailable" if limits_state == _OPEN else "ok",
            "breakers": {"redis": _OPEN if limits_state == _OPEN else _ANSWERING},
            "unreported_records": self.unreported_records(),
            "in_flight": self.pipeline.in_flight,
            "configuration": self._configuration(),
        }
        if self.freshness is not None:
            stream = self.freshness.stream
            body["control_plane"] = {
                "id": stream.control_plane_id or None,
                "is_connected": stream.is_connected,
                "heard_ms_ago": self.freshness.heard_ms_ago,
            }
            if self.freshness.staleness is Staleness.EXPIRED:
                body["warning"] = _EXPIRED
        if self.pipeline.is_draining:
            body["draining"] = True
        code = self._not_ready(limits_state)
        if code is not None:
            body["code"] = code.value
        body["status"] = "ready" if code is None else "not_ready"
        return _answer(200 if code is None else 503, body)

    def _configuration(self) -> dict[str, object]:
        try:
            snapshot = self.pipeline.current.get()
        except Refusal as refusal:
            return {"error": refusal.reason.value}
        told: dict[str, object] = {
            "epoch": snapshot.position.config_epoch,
            "revision": snapshot.position.revision,
            "age_ms": max(0, self.pipeline.clock_ms() - snapshot.applied_at_ms),
        }
        if self.freshness is not None:
            told["staleness"] = self.freshness.staleness.value
            told["quarantined"] = self.freshness.stream.quarantined
        return told

    def _not_ready(self, limits_state: str) -> Reason | None:
        """Return why no requests should come; None when they should."""
        if self.pipeline.is_draining:
            return Reason.DRAINING
        try:
            snapshot = self.pipeline.current.get()
        except Refusal as refusal:
            return refusal.reason
        if limits_state == _ANSWERING or snapshot.has_fail_open:
            return None
        return Reason.LIMITS_UNAVAILABLE


def _answer(status: int, body: dict[str, object]) -> HttpAnswer:
    headers = _JSON if status < 500 else (*_JSON, ("retry-after", "1"))
    return HttpAnswer(status, headers, msgspec.json.encode(body))
