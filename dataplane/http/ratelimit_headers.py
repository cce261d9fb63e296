"""What is left, in headers: OpenAI's and Anthropic's own, and the IETF draft's.

`RateLimit` and `RateLimit-Policy` follow draft-ietf-httpapi-ratelimit-headers; they name the layers of
the caller's user, key or device. Layers that count other tenants too are left out: their figures would
leak. A device's caller reads its own day and its address' besides.

Of a rate the limit is what may be taken at once, as what remains is counted down from there; its window is
then the time in which that comes back. Where time gives nothing back, no reset is told.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final
from weakref import WeakKeyDictionary

from dataplane.domain.calls import Dialect
from dataplane.domain.instants import instant_text
from dataplane.domain.limiting import (
    NEVER_MS,
    Layer,
    LayerPlan,
    Standing,
    SubjectKind,
    Unit,
    Window,
)

_WINDOW_SECONDS: Final = {Window.MINUTE: 60, Window.DAY: 86_400, Window.MONTH: 2_592_000}
_POLICY_WINDOWS: Final = frozenset({Window.RATE, *_WINDOW_SECONDS})
# An address is public to devices only.
_POLICY_SUBJECTS: Final = frozenset(
    {SubjectKind.USER, SubjectKind.KEY, SubjectKind.DEVICE, SubjectKind.IP}
)


@dataclass(frozen=True, slots=True)
class _Shown:
    """Which layers of a plan a caller sees, and what of the headers never changes.

    The numbers are places in the plan; None: there is no such layer. `policy` is the whole `ratelimit-policy`; `counted` has the
    beginnings of the parts of `ratelimit`; with the two days stands their limit, as text.
    """

    requests: tuple[int, ...]
    tokens: tuple[int, ...]
    policy: str
    counted: tuple[tuple[int, str], ...]
    device_day: tuple[int, str] | None
    address_day: tuple[int, str] | None


_shown_by_plan: WeakKeyDictionary[LayerPlan, _Shown] = WeakKeyDictionary()


def limit_headers(
    standings: Sequence[Standing], dialect: Dialect, now_ms: int, plan: LayerPlan | None = None
) -> tuple[tuple[str, str], ...]:
    """Return the headers that tell a caller where it stands.

    Args:
        standings: One per layer.
        dialect: Whose header names the caller reads.
        now_ms: Unix milliseconds.
        plan: The plan whose layers these are, in its order; what never changes is then worked out
            once.
    """
    shown = _shown_of([each.layer for each in standings]) if plan is None else _shown_in(plan)
    headers: list[tuple[str, str]] = []
    for name, places in (("requests", shown.requests), ("tokens", shown.tokens)):
        if not places:
            continue
        tightest = min((standings[place] for place in places), key=_remaining)
        if dialect is Dialect.ANTHROPIC:
            headers += _anthropic(tightest, name, now_ms)
        else:
            headers += _openai(tightest, name)
    if shown.counted:
        states = [f"{head}{_state(standings[place])}" for place, head in shown.counted]
        headers += [("ratelimit-policy", shown.policy), ("ratelimit", ", ".join(states))]
    if shown.device_day is not None:
        place, limit = shown.device_day
        day = standings[place]
        headers += (
            ("x-ratelimit-limit-device", limit),
            ("x-ratelimit-remaining-device", str(day.remaining)),
        )
        if day.reset_ms != NEVER_MS:
            headers.append(("x-ratelimit-reset-device", _instant(day, now_ms)))
    if shown.address_day is not None:
        place, limit = shown.address_day
        headers += (
            ("x-ratelimit-limit-ip", limit),
            ("x-ratelimit-remaining-ip", str(standings[place].remaining)),
        )
    return tuple(headers)


def _shown_in(plan: LayerPlan) -> _Shown:
    shown = _shown_by_plan.get(plan)
    if shown is None:
        shown = _shown_by_plan[plan] = _shown_of(plan.layers)
    return shown


def _shown_of(layers: Sequence[Layer]) -> _Shown:
    public = [(place, layer) for place, layer in enumerate(layers) if layer.has_public_figures]
    counted = [
        (place, layer)
        for place, layer in public
        if layer.unit in (Unit.REQUESTS, Unit.TOKENS)
        and layer.window in _POLICY_WINDOWS
        and layer.subject_kind in _POLICY_SUBJECTS
    ]
    return _Shown(
        requests=_tightest_of(public, Unit.REQUESTS),
        tokens=_tightest_of(public, Unit.TOKENS),
        policy=", ".join(_policy(layer) for _, layer in counted),
        counted=tuple((place, f'"{layer.name}"') for place, layer in counted),
        device_day=_day_of(public, SubjectKind.DEVICE),
        address_day=_day_of(public, SubjectKind.IP),
    )


def _day_of(layers: Iterable[tuple[int, Layer]], kind: SubjectKind) -> tuple[int, str] | None:
    """Return the place of a subject's requests per day, and their limit."""
    wanted = (kind, Unit.REQUESTS, Window.DAY)
    for place, layer in layers:
        if (layer.subject_kind, layer.unit, layer.window) == wanted:
            return place, str(layer.capacity)
    return None


def _tightest_of(layers: Iterable[tuple[int, Layer]], unit: Unit) -> tuple[int, ...]:
    """Return the places among which the tightest is shown.

    Those that refuse come before those that only count, and those per minute before those of longer
    times; a rate is shown where there is nothing else.
    """
    ranks: dict[tuple[bool, int], list[int]] = {}
    for place, layer in layers:
        if layer.unit is unit:
            ranks.setdefault((layer.is_shadow, _rank(layer.window)), []).append(place)
    return tuple(ranks[min(ranks)]) if ranks else ()


def _rank(window: Window) -> int:
    match window:
        case Window.MINUTE:
            return 0
        case Window.RATE:
            return 2
        case _:
            return 1


def _remaining(standing: Standing) -> int:
    return standing.remaining


def duration(milliseconds: int) -> str:
    """Return a duration as OpenAI writes it: `120ms`, `1m30s`, `2h0m5s`."""
    if milliseconds < 1000:
        return f"{max(0, milliseconds)}ms"
    minutes, seconds = divmod(-(-milliseconds // 1000), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h{minutes}m{seconds}s"
    return f"{minutes}m{seconds}s" if minutes else f"{seconds}s"


def _openai(standing: Standing, name: str) -> list[tuple[str, str]]:
    headers = [
        (f"x-ratelimit-limit-{name}", str(_most(standing.layer))),
        (f"x-ratelimit-remaining-{name}", str(standing.remaining)),
    ]
    if standing.reset_ms != NEVER_MS:
        headers.append((f"x-ratelimit-reset-{name}", duration(standing.reset_ms)))
    return headers


def _anthropic(standing: Standing, name: str, now_ms: int) -> list[tuple[str, str]]:
    prefix = f"anthropic-ratelimit-{name}"
    headers = [
        (f"{prefix}-limit", str(_most(standing.layer))),
        (f"{prefix}-remaining", str(standing.remaining)),
    ]
    if standing.reset_ms != NEVER_MS:
        headers.append((f"{prefix}-reset", _instant(standing, now_ms)))
    return headers


def _instant(standing: Standing, now_ms: int) -> str:
    return instant_text(now_ms + max(0, standing.reset_ms))


def _most(layer: Layer) -> int:
    """Return what `remaining` is counted down from: of a rate what may be taken at once."""
    return layer.most_at_once if layer.capacity else 0


def _policy(layer: Layer) -> str:
    most = _most(layer)
    seconds = _WINDOW_SECONDS.get(layer.window) or _refill_seconds(layer, most)
    return f'"{layer.name}";q={most};w={seconds}'


def _refill_seconds(rate: Layer, most: int) -> int:
    """Return in which time `most` requests of a rate pass, in whole seconds and not shorter."""
    if most == 0:
        return -(-rate.every_ms // 1000)
    return -(-rate.every_ms * most // (rate.capacity * 1000))


def _state(standing: Standing) -> str:
    left = f";r={standing.remaining}"
    if standing.reset_ms == NEVER_MS:
        return left
    return f"{left};t={-(-max(0, standing.reset_ms) // 1000)}"
