"""What is left, in headers: OpenAI's and Anthropic's own, and the IETF draft's.

`RateLimit` and `RateLimit-Policy` follow draft-ietf-httpapi-ratelimit-headers. Layers that count
other tenants too are left out: their figures would leak.
"""

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Final

from dataplane.domain.calls import Dialect
from dataplane.domain.denials import has_public_figures
from dataplane.domain.limiting import Standing, Unit, Window

_UNITS: Final = ((Unit.REQUESTS, "requests"), (Unit.TOKENS, "tokens"))
_WINDOW_SECONDS: Final = {Window.MINUTE: 60, Window.DAY: 86_400, Window.MONTH: 2_592_000}


def limit_headers(
    standings: Iterable[Standing], dialect: Dialect, now_ms: int
) -> tuple[tuple[str, str], ...]:
    """Return the headers that tell a caller where it stands."""
    shown = [
        each
        for each in standings
        if has_public_figures(each) and each.layer.unit in (Unit.REQUESTS, Unit.TOKENS)
    ]
    if not shown:
        return ()
    headers: list[tuple[str, str]] = []
    for unit, name in _UNITS:
        tightest = _tightest(shown, unit)
        if tightest is not None and dialect is Dialect.ANTHROPIC:
            headers += _anthropic(tightest, name, now_ms)
        elif tightest is not None:
            headers += _openai(tightest, name)
    counted = [each for each in shown if each.layer.window in _WINDOW_SECONDS]
    if counted:
        headers.append(("ratelimit-policy", ", ".join(_policy(each) for each in counted)))
        headers.append(("ratelimit", ", ".join(_state(each) for each in counted)))
    return tuple(headers)


def duration(milliseconds: int) -> str:
    """Return a duration as OpenAI writes it: `120ms`, `1m30s`, `2h0m5s`."""
    if milliseconds < 1000:
        return f"{max(0, milliseconds)}ms"
    minutes, seconds = divmod(-(-milliseconds // 1000), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h{minutes}m{seconds}s"
    return f"{minutes}m{seconds}s" if minutes else f"{seconds}s"


def _tightest(standings: list[Standing], unit: Unit) -> Standing | None:
    of_unit = [each for each in standings if each.layer.unit is unit]
    per_minute = [each for each in of_unit if each.layer.window is Window.MINUTE]
    return min(per_minute or of_unit, key=lambda each: each.remaining, default=None)


def _openai(standing: Standing, name: str) -> list[tuple[str, str]]:
    return [
        (f"x-ratelimit-limit-{name}", str(standing.layer.capacity)),
        (f"x-ratelimit-remaining-{name}", str(standing.remaining)),
        (f"x-ratelimit-reset-{name}", duration(standing.reset_ms)),
    ]


def _anthropic(standing: Standing, name: str, now_ms: int) -> list[tuple[str, str]]:
    reset = datetime.fromtimestamp((now_ms + max(0, standing.reset_ms)) / 1000, UTC)
    prefix = f"anthropic-ratelimit-{name}"
    return [
        (f"{prefix}-limit", str(standing.layer.capacity)),
        (f"{prefix}-remaining", str(standing.remaining)),
        (f"{prefix}-reset", reset.strftime("%Y-%m-%dT%H:%M:%SZ")),
    ]


def _policy(standing: Standing) -> str:
    layer = standing.layer
    return f'"{layer.name}";q={layer.capacity};w={_WINDOW_SECONDS[layer.window]}'


def _state(standing: Standing) -> str:
    seconds = -(-max(0, standing.reset_ms) // 1000)
    return f'"{standing.layer.name}";r={standing.remaining};t={seconds}'
