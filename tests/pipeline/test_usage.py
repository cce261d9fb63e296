"""The caller's own numbers: counters by the real Redis, the ledger by a script."""

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import Any, Final
from zoneinfo import ZoneInfo

import pytest
from msgspec.structs import replace as changed
from tollkeeper.usage.v1 import usage_service_pb2 as pb

from dataplane.control.user_usage import UserUsageClient
from dataplane.domain.credentials import check_of
from dataplane.domain.plan_cache import PlanCache
from dataplane.domain.principals import (
    DeviceStatus,
    LimitEntry,
    Service,
    SubjectLimits,
    TemporaryEntry,
)
from dataplane.domain.snapshot import Snapshot
from dataplane.http import usage
from dataplane.http.exchange import HttpRequest
from dataplane.http.usage import OwnNumbers, quota, usage_stats, usage_summary
from dataplane.limits.limiter import Limiter
from tests.control.scripted_ledger import NODE_TOKEN, ScriptedLedger
from tests.pipeline.conftest import KEY, DataPlane
from tests.pipeline.test_device_calls import TOKEN, admit_device, call
from tests.pipeline.wire import WireAnswer, check_refusal

HANDLERS: Final = {
    "/v1/llm/quota": quota,
    "/v1/usage/stats": usage_stats,
    "/v1/usage/summary": usage_summary,
}
BY_KEY: Final = {"authorization": f"Bearer {KEY}"}
BY_DEVICE: Final = {"x-device-id": "device000001", "x-session-token": TOKEN}
ZONE: Final = ZoneInfo("Asia/Kolkata")
# Prices of the mock: 1 USD per million input tokens, 2 per million output tokens.
EVERY_KIND: Final = (
    LimitEntry("requests", "minute", 10),
    LimitEntry("tokens", "minute", 10_000),
    LimitEntry("requests", "day", 50),
    LimitEntry("tokens", "month", 100_000),
    LimitEntry("spend", "month", 10**9),
    LimitEntry("spend", "total", 20 * 10**9, is_hard=False, is_shadow=True),
    LimitEntry("parallel", "none", 4),
)
HIDDEN: Final = 424_242


@dataclass
class Own:
    """The handlers, and what stands behind them."""

    data_plane: DataPlane
    ledger: ScriptedLedger
    numbers: OwnNumbers

    async def ask(
        self, path: str, headers: dict[str, str] | None = None, address: str = "127.0.0.1"
    ) -> WireAnswer:
        own = BY_KEY if headers is None else headers
        answer = await HANDLERS[path](self.numbers, HttpRequest("GET", path, own, b"", address))
        names = dict(answer.headers)
        assert len(names) == len(answer.headers)
        return WireAnswer(answer.status, names, answer.body)

    async def read(self, path: str, headers: dict[str, str] | None = None) -> dict[str, Any]:
        """Return a document, its numbers as they stand there."""
        answer = await self.ask(path, headers)
        assert answer.status == 200, answer.body
        assert answer.headers["cache-control"] == "no-store"
        assert answer.headers["content-type"] == "application/json"
        assert answer.headers["x-request-id"] == answer.headers["request-id"]
        assert len(answer.headers["x-request-id"]) == 36
        document: dict[str, Any] = json.loads(answer.body, parse_float=Decimal)
        return document

    async def limits(self, headers: dict[str, str] | None = None) -> dict[str, dict[str, Any]]:
        """Return the limits by their names."""
        limits = (await self.read("/v1/llm/quota", headers))["limits"]
        return {each["layer"]: each for each in limits}

    def use(self, snapshot: Snapshot, **changes: Any) -> None:
        self.data_plane.use(
            replace(snapshot, **changes, _plans=PlanCache(), _call_plans=PlanCache())
        )

    def change_caller(self, *, tier: str = "free", **changes: Any) -> None:
        """Change the key's user, organization (`time_zone`, `is_paused`) or tier."""
        snapshot = self.data_plane.configuration.get()
        [(digest, key)] = snapshot.keys_by_sha256.items()
        user = key.principal.user
        of = {name: changes.pop(name) for name in ("time_zone", "is_paused") if name in changes}
        user = changed(user, organization=replace(user.organization, **of), **changes)
        caller = changed(key.principal, user=user, tier=tier)
        self.use(snapshot, keys_by_sha256={digest: changed(key, principal=caller)})


@pytest.fixture
def way_in() -> str:
    """Calls that are counted come in one way; the other is tested elsewhere."""
    return "entry"


@pytest.fixture
async def own(data_plane: DataPlane) -> AsyncIterator[Own]:
    async with ScriptedLedger() as ledger:
        client = UserUsageClient([ledger.address], NODE_TOKEN)
        yield Own(data_plane, ledger, OwnNumbers(data_plane.pipeline, data_plane.limiter, client))
        await client.aclose()


def instant(text: str) -> datetime:
    assert text.endswith("Z")
    return datetime.fromisoformat(text)


async def test_an_answered_call_is_seen_at_once_in_every_kind_of_layer(own: Own) -> None:
    own.data_plane.limited(user=EVERY_KIND)
    own.change_caller(time_zone=ZONE.key)
    fresh = await own.limits()
    began = datetime.now(ZONE)

    answer = await own.data_plane.chat(model="mock-tokens-7", max_tokens=20)

    limits = await own.limits()
    cost = Decimal(answer.headers["x-tollkeeper-cost-usd"])
    tokens = answer.json()["usage"]["total_tokens"]
    assert cost > 0
    figures = {
        name: (each["unit"], each["limit"], each["used"], each["remaining"], each["shadow"])
        for name, each in limits.items()
    }
    assert figures == {
        "user_requests_per_minute": ("requests", 10, 1, 9, False),
        "user_tokens_per_minute": ("tokens", 10_000, tokens, 10_000 - tokens, False),
        "user_requests_per_day": ("requests", 50, 1, 49, False),
        "user_tokens_per_month": ("tokens", 100_000, tokens, 100_000 - tokens, False),
        "user_spend_per_month": ("usd", 1, cost, 1 - cost, False),
        "user_spend_total": ("usd", 20, cost, 20 - cost, True),
        "user_parallel": ("parallel", 4, 0, 4, False),
    }
    assert {name: each["used"] for name, each in fresh.items()} == dict.fromkeys(limits, 0)
    assert {each["scope"] for each in limits.values()} == {"user"}
    assert [limits[f"user_spend_{each}"]["hard"] for each in ("per_month", "total")] == [
        True,
        False,
    ]
    check_resets(limits, began)
    assert fresh["user_requests_per_minute"]["resets_at"] is None


def check_resets(limits: dict[str, dict[str, Any]], began: datetime) -> None:
    resets = {name: each["resets_at"] for name, each in limits.items()}
    assert resets["user_parallel"] is resets["user_spend_total"] is None
    for name in ("user_requests_per_minute", "user_tokens_per_minute"):
        passed = instant(resets[name]) - began
        assert timedelta(seconds=59) < passed <= timedelta(seconds=70)
    # A test that runs across midnight sees either day.
    days = [began.date(), datetime.now(ZONE).date()]
    tomorrows = [midnight(each + timedelta(days=1)) for each in days]
    assert instant(resets["user_requests_per_day"]) in tomorrows
    months = [midnight((each.replace(day=1) + timedelta(days=32)).replace(day=1)) for each in days]
    for name in ("user_tokens_per_month", "user_spend_per_month"):
        assert instant(resets[name]) in months


def midnight(day: date) -> datetime:
    return datetime.combine(day, time(0), ZONE)


async def test_what_a_call_in_flight_holds_is_shown_apart_and_goes_back(own: Own) -> None:
    own.data_plane.limited(key=EVERY_KIND)
    body = {
        "model": "mock-tokens-200-pace-20",
        "stream": True,
        "max_tokens": 500,
        "messages": [{"role": "user", "content": "x"}],
    }
    async with own.data_plane.client.stream("POST", "/v1/messages", json=body) as answer:
        assert answer.status_code == 200

        during = await own.limits()

    spend = during["key_spend_per_month"]
    # At least 500 output tokens at 2 USD per million.
    assert spend["used"] == 0
    assert spend["held"] >= Decimal("0.001")
    assert spend["remaining"] == 1 - spend["held"]
    assert (during["key_parallel"]["used"], during["key_parallel"]["remaining"]) == (1, 3)
    assert "held" not in during["key_requests_per_day"]
    await own.data_plane.until(lambda: len(own.data_plane.records.closes) == 1)
    after = await own.limits()
    assert (after["key_spend_per_month"]["held"], after["key_parallel"]["used"]) == (0, 0)
    assert after["key_spend_per_month"]["used"] > 0


async def test_asking_is_never_counted_and_never_refused_for_a_limit(own: Own) -> None:
    own.data_plane.limited(
        user=(LimitEntry("requests", "day", 1), LimitEntry("parallel", "none", 1)),
        key=(LimitEntry("requests", "minute", 1),),
        organization=(LimitEntry("spend", "day", 0),),
    )

    for _ in range(3):
        for path in HANDLERS:
            assert (await own.ask(path)).status == 200

    limits = await own.limits()
    assert {name: each["used"] for name, each in limits.items()} == dict.fromkeys(limits, 0)
    assert limits["organization_spend_per_day"]["remaining"] == 0
    assert await own.data_plane.counted("user_requests_per_day") == 0
    assert own.data_plane.mock.stats.requests == 0
    assert own.data_plane.records.opens == []


async def test_what_others_are_counted_in_too_is_not_shown(own: Own) -> None:
    own.data_plane.limited(
        service=(LimitEntry("requests", "day", HIDDEN), LimitEntry("spend", "day", HIDDEN)),
        organization=(LimitEntry("requests", "day", 7),),
    )
    snapshot = own.data_plane.configuration.get()
    here = SubjectLimits((LimitEntry("requests", "minute", HIDDEN),))
    at_address = {**snapshot.limits, "ip:127.0.0.1": here}
    own.use(snapshot, limits=at_address, has_address_limits=True)
    assert (await own.data_plane.chat()).status_code == 200

    answers = [await own.ask(path) for path in HANDLERS]
    limits = await own.limits()

    assert await own.data_plane.counted("ip_requests_per_minute") == 1
    assert {name: each["used"] for name, each in limits.items()} == {
        "organization_requests_per_day": 1
    }
    for answer in answers:
        assert str(HIDDEN).encode() not in answer.body
        assert b"abcdefghijkl" not in answer.body
        assert b"127.0.0.1" not in answer.body


async def test_a_device_sees_its_own_layers_and_its_addresss(own: Own) -> None:
    own.data_plane.limited(service=(LimitEntry("requests", "day", HIDDEN),))
    admit_device(own.data_plane)
    assert (await call(own.data_plane)).status_code == 200
    assert (await own.data_plane.chat()).status_code == 200

    by_device, by_key = await own.limits(BY_DEVICE), await own.limits()

    assert {name: (each["used"], each["limit"]) for name, each in by_device.items()} == {
        "user_requests_per_day": (2, 7),
        "device_requests_per_minute": (1, 60),
        "device_requests_per_day": (1, 3),
        "ip_requests_per_day": (2, 5),
    }
    assert by_device["ip_requests_per_day"]["scope"] == "ip"
    assert {name: each["used"] for name, each in by_key.items()} == {
        "user_requests_per_day": 2,
        "key_requests_per_minute": 1,
    }


@pytest.mark.parametrize(
    ("tier", "url", "expected"),
    [
        ("free", "https://example.com/upgrade", "https://example.com/upgrade"),
        ("free", "", None),
        ("paid", "https://example.com/upgrade", None),
        ("", "https://example.com/upgrade", None),
    ],
)
async def test_the_free_tier_is_told_where_to_upgrade(
    own: Own, tier: str, url: str, expected: str | None
) -> None:
    own.change_caller(tier=tier)
    own.use(own.data_plane.configuration.get(), service=Service(upgrade_url=url))

    document = await own.read("/v1/llm/quota")

    assert document == {
        "tier": tier or None,
        **({"upgrade_url": expected} if expected else {}),
        "limits": [],
    }


def ledger_of_four() -> pb.UserUsage:
    return pb.UserUsage(
        total=pb.UsageTotals(
            requests=40, input_tokens=41, output_tokens=42, charged_nanousd=12_000_000_001
        ),
        month=pb.UsageTotals(
            requests=30, input_tokens=31, output_tokens=32, charged_nanousd=3_000_000_000
        ),
        day=pb.UsageTotals(requests=10, input_tokens=11, output_tokens=12, charged_nanousd=1),
        last_24h=pb.UsageTotals(
            requests=20, input_tokens=21, output_tokens=22, charged_nanousd=250_000_000
        ),
    )


async def test_the_statistics_are_the_users_by_the_ledger_with_its_live_limits(own: Own) -> None:
    own.data_plane.limited(user=(LimitEntry("requests", "day", 50),))
    own.change_caller(time_zone=ZONE.key)
    own.ledger.usage = ledger_of_four()
    await own.data_plane.chat()
    late = datetime(2026, 11, 30, 20, 0, tzinfo=UTC)
    own.data_plane.pipeline.clock_ms = lambda: int(late.timestamp() * 1000)

    document = await own.read("/v1/usage/stats")

    [limit] = document.pop("limits")
    assert document == {
        "user": "acme/alice",
        "organization": "acme",
        "tier": "free",
        "requests": {"today": 10, "this_month": 30, "last_24h": 20, "total": 40},
        "tokens": {
            "today": {"input": 11, "output": 12},
            "this_month": {"input": 31, "output": 32},
            "last_24h": {"input": 21, "output": 22},
            "total": {"input": 41, "output": 42},
        },
        "cost_usd": {
            "today": Decimal("0.000000001"),
            "this_month": 3,
            "last_24h": Decimal("0.25"),
            "total": Decimal("12.000000001"),
        },
    }
    assert (limit["layer"], limit["used"], limit["remaining"]) == ("user_requests_per_day", 1, 49)
    [asked] = own.ledger.asked
    # In India the next day, and month, have begun.
    assert (asked.user_id, asked.usage_day, asked.usage_month) == ("u1", "20261201", "202612")


async def test_the_summary_has_the_spend_of_the_ledger_and_the_budget_of_the_counters(
    own: Own,
) -> None:
    own.data_plane.limited(
        organization=(LimitEntry("spend", "month", 100 * 10**9),),
        user=(LimitEntry("spend", "month", 1_000_000), LimitEntry("spend", "day", 10**9)),
    )
    own.ledger.usage = ledger_of_four()
    answer = await own.data_plane.chat(model="mock-tokens-50", max_tokens=50)
    cost = Decimal(answer.headers["x-tollkeeper-cost-usd"])

    document = await own.read("/v1/usage/summary")

    assert document == {
        "total_spend": Decimal("12.000000001"),
        "budget": Decimal("0.001"),
        "budget_remaining": Decimal("0.001") - cost,
        "budget_used_percentage": (cost / Decimal("0.00001")).quantize(Decimal("0.01")),
        "total_requests": 40,
        "last_24h_requests": 20,
        "last_24h_cost": Decimal("0.25"),
    }


async def test_without_a_budget_that_the_caller_may_see_the_summary_has_none(own: Own) -> None:
    own.data_plane.limited(
        service=(LimitEntry("spend", "day", 10**9),),
        user=(LimitEntry("requests", "day", 5), LimitEntry("spend", "day", 5, is_shadow=True)),
    )

    document = await own.read("/v1/usage/summary")

    assert document == {
        "total_spend": 0,
        "budget": None,
        "budget_remaining": None,
        "budget_used_percentage": None,
        "total_requests": 0,
        "last_24h_requests": 0,
        "last_24h_cost": 0,
    }


OTHER_KEY: Final = "tk_live_bbbbbbbbbbbb_" + "S" * 43


@pytest.mark.parametrize("path", HANDLERS)
@pytest.mark.parametrize(
    ("headers", "status", "code"),
    [
        ({}, 401, "missing_credentials"),
        ({"authorization": "Bearer nonsense"}, 401, "invalid_api_key"),
        ({"x-api-key": OTHER_KEY + check_of(OTHER_KEY)}, 401, "invalid_api_key"),
        ({**BY_DEVICE, "x-session-token": "tks_x"}, 401, "invalid_api_key"),
        ({"x-device-id": "device000001"}, 401, "missing_credentials"),
        ({**BY_KEY, **BY_DEVICE}, 400, "duplicate_credentials"),
        (BY_DEVICE, 403, "device_not_approved"),
    ],
)
async def test_who_may_not_call_may_not_look(
    own: Own, path: str, headers: dict[str, str], status: int, code: str
) -> None:
    admit_device(own.data_plane, status=DeviceStatus.PENDING_APPROVAL)

    answer = await own.ask(path, headers)

    check_refusal(answer, status, code, "openai")
    assert answer.headers["cache-control"] == "no-store"
    assert own.ledger.asked == []


@pytest.mark.parametrize("path", HANDLERS)
@pytest.mark.parametrize(
    ("change", "status", "code"),
    [
        ({"is_suspended": True}, 403, "user_suspended"),
        ({"is_paused": True}, 403, "organization_paused"),
    ],
)
async def test_a_suspended_user_and_a_paused_organization_see_nothing(
    own: Own, path: str, change: dict[str, Any], status: int, code: str
) -> None:
    own.change_caller(**change)

    check_refusal(await own.ask(path), status, code, "openai")


@pytest.mark.parametrize("path", HANDLERS)
@pytest.mark.parametrize("headers", [BY_KEY, BY_DEVICE])
async def test_while_the_service_is_paused_nobody_sees_anything(
    own: Own, path: str, headers: dict[str, str]
) -> None:
    admit_device(own.data_plane)
    own.use(own.data_plane.configuration.get(), service=Service(is_paused=True))

    check_refusal(await own.ask(path, headers), 403, "organization_paused", "openai")


async def test_while_the_service_is_paused_nobody_calls_and_devices_learn_where_they_stand(
    own: Own,
) -> None:
    admit_device(own.data_plane)
    own.use(own.data_plane.configuration.get(), service=Service(is_paused=True))

    for answer in (await own.data_plane.chat(), await call(own.data_plane)):
        error = check_refusal(answer, 403, "organization_paused", "openai")
        assert error["message"] == "This service is paused."
    models = await own.data_plane.client.get("/v1/models")
    assert (models.status_code, models.headers["x-tollkeeper-error"]) == (
        403,
        "organization_paused",
    )
    request = own.data_plane.client.build_request("GET", "/v1/devices/me", headers=BY_DEVICE)
    del request.headers["authorization"]
    assert (await own.data_plane.client.send(request)).json()["status"] == "approved"
    assert own.data_plane.records.opens == []


async def test_a_temporary_limit_is_shown_while_it_is_in_force(own: Own) -> None:
    own.data_plane.limited(user=(LimitEntry("requests", "day", 5),))
    snapshot = own.data_plane.configuration.get()
    now_ms = own.data_plane.pipeline.clock_ms()
    ends = TemporaryEntry(LimitEntry("requests", "day", 70), now_ms + 60_000)
    configured = changed(snapshot.limits["user:u1"], temporary=(ends,))
    own.use(snapshot, limits={"user:u1": configured})
    assert (await own.data_plane.chat()).status_code == 200

    during = await own.limits()
    own.data_plane.pipeline.clock_ms = lambda: now_ms + 60_000
    after = await own.limits()

    figures = [
        (each["user_requests_per_day"]["limit"], each["user_requests_per_day"]["used"])
        for each in (during, after)
    ]
    # The counter is the same: only what it may reach has changed.
    assert figures == [(70, 1), (5, 1)]


async def test_a_rate_is_shown_with_its_burst(own: Own) -> None:
    rate = LimitEntry("requests", "rate", 1, every_ms=3_600_000, burst=4)
    own.data_plane.limited(key=(rate,))
    assert (await own.limits())["key_requests_rate"]["resets_at"] is None
    began = datetime.now(UTC)

    assert (await own.data_plane.chat()).status_code == 200

    shown = (await own.limits())["key_requests_rate"]
    resets_at = instant(shown.pop("resets_at"))
    assert shown == {
        "layer": "key_requests_rate",
        "scope": "key",
        "unit": "requests",
        "window": "1h",
        "limit": 1,
        "burst": 4,
        "used": 1,
        "remaining": 3,
        "shadow": False,
    }
    assert timedelta(0) <= resets_at - began - timedelta(hours=1) < timedelta(minutes=1)


async def test_layers_of_endpoints_and_models_are_in_nobodys_own_numbers(own: Own) -> None:
    own.data_plane.limited(
        endpoint=(LimitEntry("requests", "day", HIDDEN),),
        model=(LimitEntry("spend", "day", 10**9),),
        user=(LimitEntry("requests", "day", 7),),
    )
    assert (await own.data_plane.chat()).status_code == 200

    assert set(await own.limits()) == {"user_requests_per_day"}
    assert (await own.read("/v1/usage/summary"))["budget"] is None


@pytest.mark.parametrize("path", HANDLERS)
async def test_before_the_first_configuration_callers_come_back_later(own: Own, path: str) -> None:
    own.data_plane.configuration.snapshot = None

    check_refusal(await own.ask(path), 503, "configuration_unavailable", "openai")


async def test_without_the_control_plane_limits_are_shown_and_sums_are_not(own: Own) -> None:
    own.data_plane.limited(user=EVERY_KIND)
    await own.ledger.die()

    for path in ("/v1/usage/stats", "/v1/usage/summary"):
        answer = await own.ask(path)
        check_refusal(answer, 503, "control_plane_unavailable", "openai")
        assert answer.headers["retry-after"] == "5"
    assert len(await own.limits()) == len(EVERY_KIND)


@pytest.mark.parametrize("path", HANDLERS)
async def test_without_redis_nothing_is_made_up(own: Own, path: str) -> None:
    own.data_plane.limited(user=EVERY_KIND)
    nowhere = await Limiter.connect("redis://127.0.0.1:1")
    own.numbers = replace(own.numbers, limiter=nowhere)

    answer = await own.ask(path)

    check_refusal(answer, 503, "limits_unavailable", "openai")
    assert answer.headers["retry-after"] == "5"
    assert nowhere.queued == 0
    assert own.ledger.asked == []
    await nowhere.aclose(0.1)


async def test_a_redis_that_stays_silent_is_given_up(
    own: Own, monkeypatch: pytest.MonkeyPatch
) -> None:
    own.data_plane.limited(user=EVERY_KIND)
    monkeypatch.setattr(usage, "_BALANCES_SECONDS", 0.05)
    silent = await Limiter.connect("redis://127.0.0.1:1")
    monkeypatch.setattr(Limiter, "is_available", True)
    own.numbers = replace(own.numbers, limiter=silent)

    check_refusal(await own.ask("/v1/llm/quota"), 503, "limits_unavailable", "openai")
    await silent.aclose(0.1)


async def test_a_caller_without_limits_needs_no_counters(own: Own) -> None:
    nowhere = await Limiter.connect("redis://127.0.0.1:1")
    own.numbers = replace(own.numbers, limiter=nowhere)

    assert (await own.read("/v1/llm/quota"))["limits"] == []
    assert (await own.read("/v1/usage/summary"))["budget"] is None
    await nowhere.aclose(0.1)
