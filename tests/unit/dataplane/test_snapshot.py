"""Which plan a call gets: compiled once, never an old one, and never another call's."""

from dataclasses import replace

import pytest
from msgspec.structs import replace as changed

from dataplane.domain.limiting import LayerPlan
from dataplane.domain.plan_cache import PlanCache
from dataplane.domain.principals import LimitEntry, Principal, SubjectLimits, TemporaryEntry, Tier
from dataplane.domain.snapshot import Snapshot
from tests.unit.dataplane import configuration

DAILY = SubjectLimits((LimitEntry("requests", "day", 5),))
HERE, THERE = "203.0.113.7", "203.0.113.8"


def snapshot(**limits: SubjectLimits) -> Snapshot:
    """Return one with limits by `user`, `address`, `chat` and `gpt`."""
    names = {
        "user": "user:u1",
        "address": f"ip:{HERE}",
        "chat": "endpoint:chat",
        "gpt": "model:gpt",
    }
    return configuration.snapshot(
        limits={names[name]: configured for name, configured in limits.items()},
        has_address_limits="address" in limits,
        limited_endpoints=frozenset({"chat"} & limits.keys()),
        limited_models=frozenset({"gpt"} & limits.keys()),
    )


def plan(
    of: Snapshot, address: str = HERE, endpoint: str = "chat", model: str = "gpt", now_ms: int = 0
) -> LayerPlan:
    return of.plan_for(caller_of(of), address, endpoint, model, now_ms)


def caller_of(of: Snapshot) -> Principal:
    return of.keys_by_sha256[b"digest"].principal


def names(of: LayerPlan) -> list[str]:
    return [layer.name for layer in of.layers]


def test_a_caller_whose_circumstances_do_not_matter_has_one_plan() -> None:
    plain = snapshot(user=DAILY)

    found = {
        id(plan(plain, address, endpoint, model, now_ms))
        for address in (HERE, THERE, "")
        for endpoint in ("chat", "messages", "")
        for model in ("gpt", "other", "")
        for now_ms in (0, 10**15)
    }

    assert len(found) == 1


def test_a_call_is_counted_by_its_own_address_endpoint_and_model_only() -> None:
    limited = snapshot(user=DAILY, address=DAILY, chat=DAILY, gpt=DAILY)
    user, here = "user_requests_per_day", "ip_requests_per_day"
    chat, gpt = "endpoint_requests_per_day", "model_requests_per_day"

    assert names(plan(limited)) == [user, here, chat, gpt]
    assert names(plan(limited, THERE)) == [user, chat, gpt]
    assert names(plan(limited, endpoint="messages")) == [user, here, gpt]
    assert names(plan(limited, model="other")) == [user, here, chat]
    assert names(plan(limited, "", "", "")) == [user]
    assert names(plan(limited)) == [user, here, chat, gpt]


def test_calls_alike_share_a_plan_and_words_without_limits_are_alike() -> None:
    limited = snapshot(gpt=DAILY)

    assert plan(limited) is plan(limited, THERE, "messages")
    assert plan(limited, model="other") is plan(limited, model="third")
    assert plan(limited) is not plan(limited, model="other")


def test_an_address_counts_where_a_tier_says_so() -> None:
    tier = Tier("pro", ip_limits=DAILY.own)
    caller = configuration.principal(tier="pro")
    limited = configuration.snapshot(key=configuration.api_key(caller), tiers={"pro": tier})

    assert names(plan(limited)) == ["ip_requests_per_day"]
    assert plan(limited) is plan(limited, endpoint="messages", model="other")
    assert plan(limited) is not plan(limited, THERE)


@pytest.mark.parametrize("subject", ["user", "chat"])
def test_a_plan_is_computed_anew_when_a_temporary_limit_in_it_ends(subject: str) -> None:
    ends = TemporaryEntry(LimitEntry("requests", "day", 70), 1_000)
    limited = snapshot(**{subject: changed(DAILY, temporary=(ends,))})

    before, last = plan(limited, now_ms=0), plan(limited, now_ms=999)
    after, later = plan(limited, now_ms=1_000), plan(limited, now_ms=10**15)

    assert before is last
    assert after is later
    assert [each.layers[0].capacity for each in (before, after)] == [70, 5]
    assert (before.valid_until_ms, after.valid_until_ms) == (1_000, None)


def test_what_callers_choose_never_fills_the_memory() -> None:
    limited = replace(snapshot(address=DAILY, gpt=DAILY), _call_plans=PlanCache(3))

    for number in range(20):
        plan(limited, f"203.0.113.{number}", f"endpoint{number}", f"model{number}")

    assert len(limited._call_plans) <= 3
    assert names(plan(limited)) == ["ip_requests_per_day", "model_requests_per_day"]
