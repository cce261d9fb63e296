"""What a data plane shows on `METRICS_PORT`: names, meanings, and where each is read.

Everything is read when somebody scrapes, from numbers that are kept anyway: requests pay nothing for it. No label ever
names a user, a key, an address or a request.
"""

from collections.abc import Callable, Iterator, Mapping
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
from tollkeeper.config.v1 import resources_pb2

from dataplane.domain.histograms import Buckets
from dataplane.domain.snapshot import Position
from dataplane.domain.staleness import Staleness
from dataplane.freshness import Freshness, StreamView

_LIMITS_STATES: Final = ("closed", "open", "cold")
_KIND_PREFIX: Final = "RESOURCE_KIND_"


class StreamFigures(StreamView, Protocol):
    """What the configuration stream counts; it only rises."""

    @property
    def reconnects_total(self) -> int:
        """Streams opened after the first."""
        ...

    @property
    def transfer_bytes_total(self) -> int:
        """Bytes of chunks received."""
        ...

    @property
    def transfers_total(self) -> Mapping[str, int]:
        """Complete transfers, by intent."""
        ...

    @property
    def nacks_total(self) -> Mapping[str, int]:
        """Refused transfers, by reason."""
        ...

    @property
    def revocations_total(self) -> int:
        """Revocations heard."""
        ...

    @property
    def unkept_revocations_total(self) -> int:
        """Those that are not on the disk although they ought to be."""
        ...


class Held(Protocol):
    """The configuration in force, as it was received."""

    @property
    def position(self) -> Position:
        """Where it stands."""
        ...

    @property
    def counts(self) -> Mapping[int, int]:
        """How many resources there are of each kind."""
        ...


@dataclass(frozen=True, slots=True)
class Sources:
    """Where the numbers are.

    Attributes:
        figures: Of the stream.
        held: What is in force.
        freshness: How old that is.
        apply_seconds: How long transfers took to be put in force, from their last chunk on.
        limits_state: Returns `closed`, `open` or `cold`, as health tells it.
        unreported_records: Returns how many there are.
        in_flight: Returns how many requests are in work.
    """

    figures: StreamFigures
    held: Held
    freshness: Freshness
    apply_seconds: Buckets
    limits_state: Callable[[], str]
    unreported_records: Callable[[], int]
    in_flight: Callable[[], int]


class DataPlaneCollector(Collector):
    """Reads the sources at each scrape, on the loop that changes them."""

    def __init__(self, sources: Sources) -> None:
        self._sources = sources

    def collect(self) -> Iterator[Metric]:
        """Return every metric as it stands now."""
        yield from self._configuration()
        yield from self._stream()
        yield from self._serving()

    def _configuration(self) -> Iterator[Metric]:
        held, figures, freshness = (
            self._sources.held,
            self._sources.figures,
            self._sources.freshness,
        )
        yield GaugeMetricFamily(
            "tollkeeper_config_revision",
            "Revision of the configuration in force; 0 without any.",
            held.position.revision,
        )
        confirmed_seconds_ago = freshness.confirmed_seconds_ago
        if confirmed_seconds_ago is not None:
            yield GaugeMetricFamily(
                "tollkeeper_config_digest_age_seconds",
                "Since a control plane last told of just the content that is in force.",
                confirmed_seconds_ago,
            )
        yield GaugeMetricFamily(
            "tollkeeper_config_staleness",
            "0 fresh, 1 stale, 2 expired: no control plane was heard for a day.",
            list(Staleness).index(freshness.staleness),
        )
        yield GaugeMetricFamily(
            "tollkeeper_config_quarantined",
            "Keys, users, devices and prices that could not be read and deny.",
            figures.quarantined,
        )
        resources = GaugeMetricFamily(
            "tollkeeper_config_resources", "Resources in force, by kind.", labels=["kind"]
        )
        for kind, count in sorted(held.counts.items()):
            resources.add_metric([_kind_name(kind)], count)
        yield resources

    def _stream(self) -> Iterator[Metric]:
        figures = self._sources.figures
        yield GaugeMetricFamily(
            "tollkeeper_config_connected",
            "1 while a control plane's stream is open.",
            int(figures.is_connected),
        )
        yield HistogramMetricFamily(
            "tollkeeper_config_apply_seconds",
            "From the last chunk of a transfer until it is in force.",
            self._sources.apply_seconds.cumulative(),
            self._sources.apply_seconds.sum_seconds,
        )
        yield _by_label(
            "tollkeeper_config_transfers",
            "Complete transfers received, by intent.",
            "intent",
            figures.transfers_total,
        )
        yield CounterMetricFamily(
            "tollkeeper_config_transfer_bytes",
            "Bytes of transfers received.",
            figures.transfer_bytes_total,
        )
        yield _by_label(
            "tollkeeper_config_nacks",
            "Transfers refused, by reason.",
            "reason",
            figures.nacks_total,
        )
        yield CounterMetricFamily(
            "tollkeeper_config_reconnects",
            "Streams opened after the first.",
            figures.reconnects_total,
        )
        yield CounterMetricFamily(
            "tollkeeper_revocations", "Revocations heard.", figures.revocations_total
        )
        yield CounterMetricFamily(
            "tollkeeper_revocations_unkept",
            "Revocations that are not on the disk although they ought to be.",
            figures.unkept_revocations_total,
        )

    def _serving(self) -> Iterator[Metric]:
        sources = self._sources
        limits = GaugeMetricFamily(
            "tollkeeper_limits_state",
            "1 for the state of the counters: closed (read), open (Redis is away) or cold (being rebuilt).",
            labels=["state"],
        )
        state_now = sources.limits_state()
        for state in _LIMITS_STATES:
            limits.add_metric([state], int(state == state_now))
        yield limits
        yield GaugeMetricFamily(
            "tollkeeper_requests_in_flight", "Requests in work.", sources.in_flight()
        )
        yield GaugeMetricFamily(
            "tollkeeper_unreported_records",
            "Usage records that the ledger does not have yet.",
            sources.unreported_records(),
        )


def exposition(sources: Sources) -> Callable[[], tuple[str, bytes]]:
    """Return what makes the answer of one scrape: its content type and its text."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(DataPlaneCollector(sources))
    return lambda: (CONTENT_TYPE_LATEST, generate_latest(registry))


def _by_label(name: str, text: str, label: str, counts: Mapping[str, int]) -> CounterMetricFamily:
    family = CounterMetricFamily(name, text, labels=[label])
    for value, count in counts.items():
        family.add_metric([value], count)
    return family


def _kind_name(kind: int) -> str:
    """Return a kind in lower case; one of a newer control plane by its number."""
    known = resources_pb2.ResourceKind.DESCRIPTOR.values_by_number.get(kind)
    return known.name.removeprefix(_KIND_PREFIX).lower() if known else str(kind)
