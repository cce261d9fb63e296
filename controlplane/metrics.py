"""What a control plane shows on `METRICS_PORT`: names, meanings, and where each is read.

Everything is read when somebody scrapes, from numbers that are kept anyway. No label ever names a user, a key, a node or a
request. Each control plane tells of the data planes on its own streams: add them up over all of them.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector
from tollkeeper.admin.v1 import node_service_pb2 as pb
from tollkeeper.common.v1 import errors_pb2

from controlplane.domain.histograms import Buckets
from controlplane.rpc.node_views import SeenNode, staleness_of
from controlplane.snapshots.snapshot import Position

STATES: Final = ("fresh", "stale", "expired", "refusing", "not_ready", "silent")
"""What a data plane can be, the worst that applies: silent ones are not heard any more, those that refuse serve something
older because they refused the newest, and those that are not ready serve nothing."""

_STALENESS: Final = {
    pb.STALENESS_FRESH: "fresh",
    pb.STALENESS_STALE: "stale",
    pb.STALENESS_EXPIRED: "expired",
}


class LiveNode(SeenNode, Protocol):
    """A node whose stream may have died."""

    def is_live(self, now_s: float) -> bool:
        """Say whether it was heard lately."""
        ...


class Streams(Protocol):
    """The data planes on this control plane's streams, and what it published."""

    @property
    def current(self) -> Position:
        """The newest published position; an empty one before the first."""
        ...

    def watchers(self) -> Sequence[LiveNode]:
        """Return the open streams."""
        ...

    def now_s(self) -> float:
        """Return the time of the clock that all of this goes by, in seconds."""
        ...


class Tally(Protocol):
    """What the streams did since the start; it only rises."""

    @property
    def streams_total(self) -> int:
        """Streams that were opened."""
        ...

    @property
    def transfer_bytes_total(self) -> int:
        """Bytes of the chunks that were sent."""
        ...

    @property
    def transfers_total(self) -> Mapping[str, int]:
        """Transfers that were begun, by intent."""
        ...

    @property
    def nacks_total(self) -> Mapping[str, int]:
        """Transfers that nodes refused, by reason."""
        ...


class Publications(Protocol):
    """What was published, and how soon."""

    @property
    def published_at_s(self) -> float | None:
        """When it published last, by the streams' clock; None: never."""
        ...

    @property
    def publish_seconds(self) -> Buckets:
        """From the first commit of a publication until it is offered to the nodes."""
        ...


class Answers(Protocol):
    """How long nodes took, where somebody waited."""

    @property
    def revocation_seconds(self) -> Buckets:
        """From the commit of a revocation to a node's acknowledgement."""
        ...

    @property
    def propagation_seconds(self) -> Buckets:
        """From the commit of another change to a node's acknowledgement."""
        ...

    @property
    def missing_total(self) -> int:
        """Live nodes that had not answered when a wait was over."""
        ...


@dataclass(frozen=True, slots=True)
class Sources:
    """Where the numbers are. `problems` returns why the newest content is not published."""

    streams: Streams
    tally: Tally
    publications: Publications
    problems: Callable[[], Sequence[str]]
    answers: Answers


class ControlPlaneCollector(Collector):
    """Reads the sources at each scrape, on the loop that changes them."""

    def __init__(self, sources: Sources) -> None:
        self._sources = sources

    def collect(self) -> Iterator[Metric]:
        """Return every metric as it stands now."""
        yield from self._published()
        yield self._nodes()
        yield from self._transfers()
        yield from self._answers()

    def _published(self) -> Iterator[Metric]:
        streams, publications = self._sources.streams, self._sources.publications
        yield GaugeMetricFamily(
            "tollkeeper_config_revision",
            "Revision of the newest published configuration; 0 before the first.",
            streams.current.revision,
        )
        if publications.published_at_s is not None:
            yield GaugeMetricFamily(
                "tollkeeper_config_published_age_seconds",
                "Since something was published last.",
                max(0.0, streams.now_s() - publications.published_at_s),
            )
        yield GaugeMetricFamily(
            "tollkeeper_config_unpublished_problems",
            "Why the newest content of the database is not published: how many reasons.",
            len(self._sources.problems()),
        )
        yield _histogram(
            "tollkeeper_config_publish_seconds",
            "From the first commit of a publication until it is offered to the data planes.",
            publications.publish_seconds,
        )

    def _nodes(self) -> Metric:
        streams = self._sources.streams
        now_s = streams.now_s()
        counts = Counter(_state_of(node, now_s) for node in streams.watchers())
        family = GaugeMetricFamily(
            "tollkeeper_nodes",
            "Data planes on the streams of this control plane.",
            labels=["state"],
        )
        for state in STATES:
            family.add_metric([state], counts[state])
        return family

    def _transfers(self) -> Iterator[Metric]:
        tally = self._sources.tally
        yield CounterMetricFamily(
            "tollkeeper_config_streams", "Streams that data planes opened.", tally.streams_total
        )
        yield _by_label(
            "tollkeeper_config_transfers",
            "Transfers begun, by intent.",
            "intent",
            tally.transfers_total,
        )
        yield CounterMetricFamily(
            "tollkeeper_config_transfer_bytes",
            "Bytes of transfers sent.",
            tally.transfer_bytes_total,
        )
        yield _by_label(
            "tollkeeper_config_nacks",
            "Transfers that data planes refused, by reason.",
            "reason",
            tally.nacks_total,
        )

    def _answers(self) -> Iterator[Metric]:
        answers = self._sources.answers
        yield _histogram(
            "tollkeeper_revocation_seconds",
            "From the commit of a revocation until a data plane obeyed, where somebody waited.",
            answers.revocation_seconds,
        )
        yield _histogram(
            "tollkeeper_propagation_seconds",
            "From the commit of another change until a data plane applied it, where somebody waited.",
            answers.propagation_seconds,
        )
        yield CounterMetricFamily(
            "tollkeeper_propagation_missing",
            "Live data planes that had not answered when a wait was over.",
            answers.missing_total,
        )


def exposition(sources: Sources) -> Callable[[], tuple[str, bytes]]:
    """Return what makes the answer of one scrape: its content type and its text."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(ControlPlaneCollector(sources))
    return lambda: (CONTENT_TYPE_LATEST, generate_latest(registry))


def _state_of(node: LiveNode, now_s: float) -> str:
    if not node.is_live(now_s):
        return "silent"
    if node.not_ready != errors_pb2.ERROR_REASON_UNSPECIFIED:
        return "not_ready"
    if node.problems:
        return "refusing"
    return _STALENESS[staleness_of(node, now_s)]


def _histogram(name: str, text: str, buckets: Buckets) -> Metric:
    return HistogramMetricFamily(name, text, buckets.cumulative(), buckets.sum_seconds)


def _by_label(name: str, text: str, label: str, counts: Mapping[str, int]) -> Metric:
    family = CounterMetricFamily(name, text, labels=[label])
    for value, count in sorted(counts.items()):
        family.add_metric([value], count)
    return family
