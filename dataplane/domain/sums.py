"""What requests add to counters, by the rules with which the ledger keeps its sums.

A request that is not `released` counts for each of its subjects over a day, a month and for ever. The
service, an address, an endpoint class and a model have the days of UTC; the others those of their
organization. Which reset generation of a counter it counts in was decided at its admission.
"""

from collections.abc import Iterable, Iterator
from datetime import UTC, date, datetime, timedelta
from functools import lru_cache
from typing import Final

import msgspec

from dataplane.domain.calls import UsageEvent, UsageState
from dataplane.domain.counters import CounterKind, CounterName
from dataplane.domain.limiting import CALENDAR_WINDOWS, SubjectKind, Unit, Window, public_name
from dataplane.domain.periods import FOREVER_MS
from dataplane.domain.principals import LimitEntry, SubjectLimits
from dataplane.domain.snapshot import Snapshot

TOTAL_ID: Final = "total"
# Subjects that belong to no organization: their days are those of UTC.
SERVICE_KINDS: Final = frozenset(
    (SubjectKind.GLOBAL, SubjectKind.IP, SubjectKind.ENDPOINT, SubjectKind.MODEL)
)
_COUNTED_UNITS: Final = (Unit.REQUESTS, Unit.TOKENS, Unit.SPEND)
_LAYER_NAMES: Final = {
    (kind, unit, window): public_name(kind, unit, window)
    for kind in SubjectKind
    for unit in _COUNTED_UNITS
    for window in CALENDAR_WINDOWS
}
# A day begins up to 14 hours before that of UTC, and ends up to 12 hours after it.
_EARLIEST: Final = timedelta(hours=14)
_LATEST: Final = timedelta(hours=12)
_MONTH_DIGITS: Final = 6


class Contribution(msgspec.Struct, frozen=True, array_like=True):
    """What one request adds to the sums of its subjects; small, for it travels between nodes.

    `tokens` are input and output, of an abandoned request what it reserved; `generations` are the
    reset generations other than 0, by the names of the layers that counted it.
    """

    request_id: str
    organization_id: str
    user_id: str
    key_id: str
    device_id: str
    address_subjects: tuple[str, ...]
    endpoint: str
    model: str
    usage_day: str
    usage_month: str
    service_day: str
    generations: tuple[tuple[str, int], ...]
    tokens: int
    charged_nanousd: int


def contribution_of(event: UsageEvent) -> Contribution | None:
    """Return what a request that is over adds; None for one that was given back."""
    if event.state is UsageState.RELEASED:
        return None
    is_abandoned = event.state is UsageState.ABANDONED
    return Contribution(
        request_id=event.request_id,
        organization_id=event.organization_id,
        user_id=event.user_id,
        key_id=event.key_id,
        device_id=event.device_id,
        address_subjects=event.address_subjects,
        endpoint=event.endpoint,
        model=event.model,
        usage_day=event.usage_day,
        usage_month=event.usage_month,
        service_day=event.service_day,
        generations=event.generations,
        tokens=event.reserved_tokens if is_abandoned else event.usage.total_tokens,
        charged_nanousd=event.charged_nanousd,
    )


def amounts_of(it: Contribution) -> Iterator[tuple[CounterName, int]]:
    """Yield every counter that a request counts in, whether or not it is limited, and how much."""
    generations = dict(it.generations)
    amounts = ((Unit.REQUESTS, 1), (Unit.TOKENS, it.tokens), (Unit.SPEND, it.charged_nanousd))
    own = _periods(it.usage_day, it.usage_month)
    of_service = _periods(it.service_day, it.service_day[:_MONTH_DIGITS])
    for kind, subject_id in _subjects(it):
        for window, period_id in of_service if kind in SERVICE_KINDS else own:
            for unit, amount in amounts:
                generation = generations.get(_LAYER_NAMES[kind, unit, window], 0)
                yield CounterName(kind, subject_id, unit, window, period_id, generation), amount


def counter_kinds(snapshot: Snapshot) -> frozenset[CounterKind]:
    """Return the kinds of counter with a sum in the ledger that layers of a snapshot can have.

    Temporary limits are among them whether or not they have expired.
    """
    service = snapshot.service
    given: list[tuple[SubjectKind, Iterable[LimitEntry]]] = [
        (SubjectKind.GLOBAL, service.default_global_limits),
        (SubjectKind.USER, service.default_user_limits),
    ]
    for tier in snapshot.tiers.values():
        given += (
            (SubjectKind.USER, tier.user_limits),
            (SubjectKind.KEY, tier.credential_limits),
            (SubjectKind.DEVICE, (*tier.credential_limits, *tier.device_limits)),
            (SubjectKind.IP, tier.ip_limits),
        )
    given += ((kind_of(name), _entries(each)) for name, each in snapshot.limits.items())
    return frozenset(
        CounterKind(kind, Unit(entry.unit), Window(entry.window))
        for kind, entries in given
        for entry in entries
        if (kind, entry.unit, entry.window) in _LAYER_NAMES and not entry.is_unlimited
    )


def kind_of(subject: str) -> SubjectKind:
    """Return whom a key of `Snapshot.limits` names: `user:<id>`, `global`."""
    return SubjectKind(subject.partition(":")[0])


def open_period_ids(now_ms: int) -> frozenset[str]:
    """Return the ids of all periods that run somewhere in the world at `now_ms`, Unix milliseconds."""
    now = datetime.fromtimestamp(now_ms / 1000, tz=UTC)
    days = [(now - _LATEST).date(), now.date(), (now + _EARLIEST).date()]
    return frozenset(
        (TOTAL_ID, *(f"{day:%Y%m%d}" for day in days), *(f"{day:%Y%m}" for day in days))
    )


@lru_cache(maxsize=1024)
def latest_end_ms(window: Window, period_id: str) -> int:
    """Return when a period has ended everywhere in the world, in Unix milliseconds.

    Raises:
        ValueError: `period_id` names no period of `window`.
    """
    match window:
        case Window.TOTAL if period_id == TOTAL_ID:
            return FOREVER_MS
        case Window.DAY:
            following = _day_of(period_id) + timedelta(days=1)
        case Window.MONTH:
            following = (_day_of(f"{period_id}01") + timedelta(days=32)).replace(day=1)
        case _:
            raise ValueError(f"{period_id!r} is no period of {window}")
    midnight = datetime(following.year, following.month, following.day, tzinfo=UTC)
    return int((midnight + _LATEST).timestamp() * 1000)


def _periods(day: str, month: str) -> tuple[tuple[Window, str], ...]:
    return (Window.DAY, day), (Window.MONTH, month), (Window.TOTAL, TOTAL_ID)


def _subjects(it: Contribution) -> Iterable[tuple[SubjectKind, str]]:
    yield SubjectKind.GLOBAL, ""
    named = (
        (SubjectKind.ORGANIZATION, it.organization_id),
        (SubjectKind.USER, it.user_id),
        (SubjectKind.KEY, it.key_id),
        (SubjectKind.DEVICE, it.device_id),
        *((SubjectKind.IP, each) for each in it.address_subjects),
        (SubjectKind.ENDPOINT, it.endpoint),
        (SubjectKind.MODEL, it.model),
    )
    for kind, subject_id in named:
        if subject_id:
            yield kind, subject_id


def _entries(limits: SubjectLimits) -> Iterator[LimitEntry]:
    yield from limits.own
    yield from (each.entry for each in limits.temporary)


def _day_of(text: str) -> date:
    if len(text) != len("20261121") or not text.isascii() or not text.isdigit():
        raise ValueError(f"{text!r} is no day")
    return date(int(text[:4]), int(text[4:6]), int(text[6:]))
