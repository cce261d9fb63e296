"""How the service is, as `tollkeeper status` shows it: rows, and sentences about what is wrong."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Final

from controlplane.cli.plain import Record, record_of

if TYPE_CHECKING:
    from tollkeeper.admin.v1.node_service_pb2 import ListNodesResponse, Node
    from tollkeeper.admin.v1.operations_service_pb2 import ServiceStatus
    from tollkeeper.common.v1.position_pb2 import Position

# Ends by itself: the node was told to stop.
_DRAINING: Final = "draining"
_HTTP_OK: Final = 200
_MS_PER_HOUR: Final = 3_600_000


@dataclass(frozen=True, slots=True)
class Gateway:
    """What a data plane said at its URL; without an HTTP status it did not answer."""

    url: str
    http_status: int | None

    @property
    def is_ready(self) -> bool:
        """Whether it takes requests."""
        return self.http_status == _HTTP_OK

    def row(self) -> Record:
        """Return it as it is printed."""
        return {"url": self.url, "is_ready": self.is_ready, "http_status": self.http_status}

    def sentence(self) -> str:
        """Say how it is."""
        if self.is_ready:
            return f"{self.url} is ready"
        if self.http_status is None:
            return f"{self.url} cannot be reached"
        return f"{self.url} is not ready: HTTP {self.http_status}"


def control_plane_row(status: "ServiceStatus", address: str) -> Record:
    """Return a control plane as it is printed."""
    return {
        "address": address,
        "id": status.control_plane_id,
        "version": status.version,
        "uptime_seconds": status.uptime_seconds,
        "database": status.database,
        "database_ms": round(status.database_ms, 3),
        "schema": status.schema,
        "revision": status.position.revision,
        "digest": status.position.digest.hex(),
        "pending_devices": status.pending_devices,
        "paused": status.paused,
        "problems": list(status.problems),
    }


def data_plane_row(node: "Node", current: "Position", now: datetime) -> Record:
    """Return a data plane as it is printed, beside the newest position and this machine's clock."""
    words, wanted = record_of(node), wanted_of(node, current)
    return {
        "node": node.node_id,
        "version": node.version,
        "revision": node.applied.revision,
        "digest": node.applied.digest.hex(),
        "is_current": node.applied == wanted,
        "lag_revisions": lag_revisions(node.applied, wanted),
        "lag_ms": node.lag_ms,
        "staleness": words["staleness"],
        "apply_ms": node.apply_ms,
        "refused_at": words["refused_at"],
        "refusal": node.refusal or None,
        "control_plane": node.control_plane_id or None,
        "connected_at": words["connected_at"],
        "organizations": list(node.organizations),
        "heard_ms_ago": _ms_ago(node, now),
        "redis": "unavailable" if node.limits_unavailable else "ok",
        "maintains_counters": node.maintains_counters,
        "not_ready": _not_ready(node),
        "unreported_records": node.unreported_records,
        "oldest_unreported_at": words["oldest_unreported_at"],
        "quarantined": list(node.quarantined),
        "problems": list(node.problems),
    }


def wanted_of(node: "Node", current: "Position") -> "Position":
    """Return the content that a data plane should have: of a part of the organizations, it is not what `current` names.

    A control plane of a version before does not say so; all its data planes serve everything.
    """
    return node.wanted if node.HasField("wanted") else current


def lag_revisions(applied: "Position", current: "Position") -> int | None:
    """Return how many revisions lie between; None when they are of different databases and cannot be compared."""
    if applied.config_epoch != current.config_epoch:
        return None
    return current.revision - applied.revision


def faults(
    status: "ServiceStatus", nodes: "ListNodesResponse", gateway: Gateway | None
) -> list[str]:
    """Return a sentence for each thing that does not end by itself: its operator has to do something."""
    found = [f"the newest configuration is not published: {text}" for text in status.problems]
    if not any(_not_ready(node) is None for node in nodes.nodes):
        found.append(
            "no connected data plane is serving" if nodes.nodes else "no data plane is connected"
        )
    for node in nodes.nodes:
        found.extend(f"{node.node_id} {text}" for text in _node_faults(node, nodes.current))
    if gateway is not None and not gateway.is_ready:
        found.append(gateway.sentence())
    return found


def remarks(status: "ServiceStatus", nodes: "ListNodesResponse") -> list[str]:
    """Return a sentence for each thing that is as it should be, and that an operator may want to know."""
    found = [f"{node.node_id} is draining" for node in nodes.nodes if _not_ready(node) == _DRAINING]
    if status.paused:
        found.append("the service is paused, every call is refused: tollkeeper service resume")
    if status.pending_devices:
        count = status.pending_devices
        waiting = "1 device waits" if count == 1 else f"{count} devices wait"
        found.append(f"{waiting} for approval: tollkeeper device list --status pending_approval")
    return found


def is_settled(nodes: "ListNodesResponse") -> bool:
    """Return whether every data plane has applied the newest configuration, or said why it does not."""
    return all(
        node.applied == wanted_of(node, nodes.current) or node.problems for node in nodes.nodes
    )


def _node_faults(node: "Node", current: "Position") -> Iterator[str]:
    not_ready = _not_ready(node)
    if not_ready not in (None, _DRAINING):
        yield f"is not serving: {not_ready}"
    if node.limits_unavailable:
        yield "cannot read its counters in Redis"
    yield from (f"refused the newest configuration: {text}" for text in node.problems)
    yield from (
        f"cannot read a resource, and denies its calls: {text}" for text in node.quarantined
    )
    wanted = wanted_of(node, current)
    if node.applied != wanted and not node.problems:
        yield _behind(lag_revisions(node.applied, wanted)) + _for_how_long(node)


def _behind(lag: int | None) -> str:
    match lag:
        case None:
            return "has the configuration of another database"
        case 0:
            return "has another content of the newest revision"
        case 1:
            return "is 1 revision behind"
        case _ if lag > 0:
            return f"is {lag} revisions behind"
        case _:
            return f"is {-lag} revisions ahead of this control plane"


def _for_how_long(node: "Node") -> str:
    """Say how old the lag is, and why the node is in it as far as it said so."""
    hours = node.lag_ms // _MS_PER_HOUR
    lasting = f", for {hours} h" if hours else ""
    return f"{lasting}, and refused a transfer: {node.refusal}" if node.refusal else lasting


def _ms_ago(node: "Node", now: datetime) -> int | None:
    if not node.HasField("heard_at"):
        return None
    # Two machines' clocks: a node that was heard in this one's future was heard just now.
    return max(0, round(now.timestamp() * 1000) - node.heard_at.ToMilliseconds())


def _not_ready(node: "Node") -> str | None:
    word = record_of(node)["not_ready"]
    return None if word is None else str(word)
