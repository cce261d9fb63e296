from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import pytest

from dataplane.domain.entitlements import (
    Circumstances,
    Entitlements,
    address_digest,
    counts_addresses,
)
from dataplane.domain.limiting import Layer, LayerPlan, SubjectKind
from dataplane.domain.principals import (
    LimitEntry,
    Principal,
    Service,
    SubjectLimits,
    TemporaryEntry,
    Tier,
)
from tests.unit.dataplane.configuration import organization, principal, user

DEFAULT = LimitEntry("requests", "day", 1000)
SERVICE = Service(
    default_user_limits=(DEFAULT, LimitEntry("tokens", "day", 10**6)),
    default_global_limits=(LimitEntry("spend", "day", 500),),
)

PRO = Tier(
    "pro",
    device_limits=(LimitEntry("requests", "day", 100),),
    ip_limits=(LimitEntry("requests", "day", 500),),
    user_limits=(LimitEntry("requests", "month", 9000),),
    credential_limits=(LimitEntry("requests", "minute", 5), LimitEntry("requests", "day", 70)),
)
TIERS = {"pro": PRO}
ADDRESS = "203.0.113.7"
DEVICE = principal(kind=SubjectKind.DEVICE, principal_id="d1", tier="pro")


def plan_in(
    service: Service,
    limits: Mapping[str, SubjectLimits | tuple[LimitEntry, ...]],
    tiers: Mapping[str, Tier],
    caller: Principal,
    now_ms: int = 0,
    **circumstances: str,
) -> LayerPlan:
    configured = {
        subject: given if isinstance(given, SubjectLimits) else SubjectLimits(given)
        for subject, given in limits.items()
    }
    entitlements = Entitlements(service, configured, tiers)
    return entitlements.plan(caller, Circumstances(**circumstances), now_ms)


def layers_for(
    service: Service,
    limits: Mapping[str, SubjectLimits | tuple[LimitEntry, ...]],
    tiers: Mapping[str, Tier],
    caller: Principal,
    address: str = "",
    now_ms: int = 0,
) -> tuple[Layer, ...]:
    return plan_in(service, limits, tiers, caller, now_ms, address_prefix=address).layers


def layers(
    limits: Mapping[str, SubjectLimits | tuple[LimitEntry, ...]], now_ms: int = 0, **of_user: Any
) -> dict[str, int]:
    caller = principal(user=user(**of_user))
    return capacities(layers_for(SERVICE, limits, TIERS, caller, now_ms=now_ms))


def capacities(found: Iterable[Layer]) -> dict[str, int]:
    return {layer.name: layer.capacity for layer in found}


def test_defaults_hold_for_users_and_the_service() -> None:
    assert layers({}) == {
        "global_spend_per_day": 500,
        "user_requests_per_day": 1000,
        "user_tokens_per_day": 10**6,
    }


def test_a_users_own_limit_takes_the_place_of_the_same_default_only() -> None:
    own = {"user:u1": (LimitEntry("requests", "day", 5), LimitEntry("requests", "minute", 2))}

    found = layers(own)

    assert found["user_requests_per_day"] == 5
    assert found["user_requests_per_minute"] == 2
    assert found["user_tokens_per_day"] == 10**6


def test_unlimited_takes_a_default_away_and_makes_no_layer() -> None:
    unlimited = LimitEntry("requests", "day", 0, is_unlimited=True)

    assert "user_requests_per_day" not in layers({"user:u1": (unlimited,)})
    assert layers({"key:k1": (unlimited,)})["user_requests_per_day"] == 1000


def test_a_tier_replaces_the_defaults_and_not_a_users_own_limits() -> None:
    own = {"user:u1": (LimitEntry("requests", "minute", 2),)}

    assert layers(own, tier="pro") == {
        "global_spend_per_day": 500,
        "user_requests_per_minute": 2,
        "user_requests_per_month": 9000,
        "key_requests_per_minute": 5,
        "key_requests_per_day": 70,
    }


def test_a_tier_that_is_not_there_is_none() -> None:
    assert layers({}, tier="gone") == layers({})


def test_a_device_has_its_tiers_layers_and_those_of_its_address() -> None:
    found = layers_for(Service(), {}, TIERS, DEVICE, ADDRESS)

    assert capacities(found) == {
        "user_requests_per_month": 9000,
        "device_requests_per_day": 100,
        "device_requests_per_minute": 5,
        "ip_requests_per_day": 500,
    }
    assert all(layer.has_public_figures for layer in found)


def test_a_credentials_own_tier_takes_the_place_of_its_users() -> None:
    small = Tier("small", user_limits=(LimitEntry("requests", "month", 1),))
    caller = principal(user=user(tier="pro"), tier="small")

    found = layers_for(Service(), {}, {**TIERS, "small": small}, caller, ADDRESS)

    assert capacities(found) == {"user_requests_per_month": 1}


def test_what_is_set_for_a_device_or_an_address_beats_the_tier() -> None:
    limits = {
        "device:d1": (LimitEntry("requests", "minute", 0, is_unlimited=True),),
        "ip:203.0.113.7": (LimitEntry("requests", "day", 3), LimitEntry("requests", "minute", 2)),
        "ip:203.0.113.8": (LimitEntry("requests", "day", 1),),
    }

    found = capacities(layers_for(Service(), limits, TIERS, DEVICE, ADDRESS))

    assert "device_requests_per_minute" not in found
    assert found["ip_requests_per_day"] == 3
    assert found["ip_requests_per_minute"] == 2


def test_a_tiers_callers_at_one_address_are_counted_together_and_apart_from_other_tiers() -> None:
    other = Tier("other", ip_limits=PRO.ip_limits)
    callers = [DEVICE, principal(tier="pro"), principal(tier="other")]

    found = [
        {layer.subject_id for layer in layers_for(Service(), {}, {**TIERS, "other": other}, each, at)
         if layer.subject_kind is SubjectKind.IP}
        for each, at in [(callers[0], ADDRESS), (callers[1], ADDRESS), (callers[2], ADDRESS),
                         (callers[0], "203.0.113.8")]
    ]  # fmt: skip

    assert found[0] == found[1]
    assert len({frozenset(ids) for ids in found}) == 3
    assert not any(ADDRESS in subject for ids in found for subject in ids)


def test_the_figures_of_an_address_are_shown_to_devices_only_and_the_services_to_nobody() -> None:
    by_key = layers_for(SERVICE, {}, TIERS, principal(tier="pro"), ADDRESS)

    hidden = {layer.name for layer in by_key if not layer.has_public_figures}

    assert hidden == {"global_spend_per_day", "ip_requests_per_day"}


def test_without_an_address_there_is_no_layer_of_one() -> None:
    found = layers_for(Service(), {}, TIERS, DEVICE)

    assert SubjectKind.IP not in {layer.subject_kind for layer in found}


def test_every_subject_of_the_key_counts_and_nobody_elses() -> None:
    entry = (LimitEntry("parallel", "none", 3),)
    names = (
        "global",
        "organization:o1",
        "user:u1",
        "key:k1",
        "organization:o2",
        "user:u2",
        "key:k2",
    )
    limits = dict.fromkeys(names, entry)

    found = layers_for(Service(), limits, {}, principal())

    subjects = [(layer.subject_kind, layer.subject_id) for layer in found]
    assert subjects == [
        (SubjectKind.GLOBAL, ""),
        (SubjectKind.ORGANIZATION, "o1"),
        (SubjectKind.USER, "u1"),
        (SubjectKind.KEY, "k1"),
    ]


def test_days_are_those_of_the_organization_and_the_services_those_of_utc() -> None:
    caller = principal(user=user(organization=organization(time_zone="Asia/Tokyo")))

    zones = {layer.subject_kind: layer.time_zone for layer in layers_for(SERVICE, {}, {}, caller)}

    assert zones == {SubjectKind.GLOBAL: "UTC", SubjectKind.USER: "Asia/Tokyo"}


def test_flags_and_generations_of_a_limit_reach_its_layer() -> None:
    entry = LimitEntry("spend", "month", 9, is_hard=False, is_shadow=True, reset_generation=4)

    [layer] = layers_for(Service(), {"key:k1": (entry,)}, {}, principal())

    assert (layer.is_hard, layer.is_shadow, layer.reset_generation) == (False, True, 4)


def until(until_ms: int, window: str = "day", capacity: int = 70, **changes: Any) -> TemporaryEntry:
    return TemporaryEntry(LimitEntry("requests", window, capacity, **changes), until_ms)


def test_a_temporary_limit_takes_the_place_of_any_other_until_it_expires() -> None:
    own = (LimitEntry("requests", "day", 5),)
    of_tier = {"user:u1": SubjectLimits(temporary=(until(9, "month"),))}
    of_service = {"user:u1": SubjectLimits(temporary=(until(9),))}
    of_itself = {"user:u1": SubjectLimits(own, (until(9),))}

    for limits, name, before, tier in (
        (of_tier, "user_requests_per_month", 9000, "pro"),
        (of_service, "user_requests_per_day", 1000, ""),
        (of_itself, "user_requests_per_day", 5, ""),
    ):
        assert layers(limits, 8, tier=tier)[name] == 70
        assert layers(limits, 9, tier=tier)[name] == before


def test_a_temporary_limit_may_be_one_more_or_none_at_all() -> None:
    one_more = {"user:u1": SubjectLimits(temporary=(until(9, "minute"),))}
    none = {"user:u1": SubjectLimits(temporary=(until(9, capacity=0, is_unlimited=True),))}

    assert layers(one_more, 8)["user_requests_per_minute"] == 70
    assert layers(one_more, 9) == layers({})
    assert layers(none, 9) == layers({})


def test_what_a_temporary_none_takes_away_is_counted_on_in_its_shadow() -> None:
    none = until(9, capacity=0, is_unlimited=True)
    given = LimitEntry("requests", "day", 0, is_unlimited=True)

    def day(*own: LimitEntry, now_ms: int = 8) -> list[Layer]:
        limits = {"user:u1": SubjectLimits(own, (none,))}
        found = layers_for(SERVICE, limits, {}, principal(), now_ms=now_ms)
        return [layer for layer in found if layer.name == "user_requests_per_day"]

    [suspended], [later] = day(), day(now_ms=9)
    assert (suspended.is_shadow, suspended.has_public_figures) == (True, False)
    assert suspended == replace(later, is_shadow=True, has_public_figures=False)
    assert not day(given)


def test_an_address_falls_back_from_a_temporary_limit_to_its_tiers_own_counter() -> None:
    limits = {f"ip:{ADDRESS}": SubjectLimits(temporary=(until(9, "day", 3),))}

    now, later = (layers_for(Service(), limits, TIERS, DEVICE, ADDRESS, at) for at in (8, 9))

    [during] = (each for each in now if each.subject_kind is SubjectKind.IP)
    [after] = (each for each in later if each.subject_kind is SubjectKind.IP)
    digest = address_digest(ADDRESS)
    assert (during.subject_id, during.capacity) == (digest, 3)
    assert (after.subject_id, after.capacity) == (f"pro-{digest}", 500)


def test_a_plan_holds_until_the_first_temporary_limit_in_it_ends() -> None:
    limits = {
        "user:u1": SubjectLimits(temporary=(until(50), until(20, "month"))),
        # It refuses nobody, and yet there will be one when it ends.
        "global": SubjectLimits(temporary=(until(30, "day", 0, is_unlimited=True),)),
        "user:u2": SubjectLimits(temporary=(until(10),)),
        "endpoint:chat": SubjectLimits(temporary=(until(40),)),
    }

    def valid_until(now_ms: int) -> int | None:
        plan = plan_in(SERVICE, limits, {}, principal(), now_ms, endpoint="chat")
        return plan.valid_until_ms

    assert [valid_until(now) for now in (0, 20, 30, 40, 50)] == [20, 30, 40, 50, None]
    assert plan_in(SERVICE, {}, {}, principal()).valid_until_ms is None


SOURCES = {
    "its own": ({"user:u1": SubjectLimits((DEFAULT,), generations={("requests", "day"): 3})}, ""),
    "its tier's": ({"user:u1": SubjectLimits(generations={("requests", "month"): 3})}, "pro"),
    "the service's": ({"user:u1": SubjectLimits(generations={("requests", "day"): 3})}, ""),
    "a temporary": (
        {"user:u1": SubjectLimits((), (until(9),), {("requests", "day"): 3})},
        "",
    ),
}


@pytest.mark.parametrize("source", SOURCES)
def test_a_reset_counter_starts_anew_whoever_set_its_limit(source: str) -> None:
    limits, tier = SOURCES[source]

    found = layers_for(SERVICE, limits, TIERS, principal(user=user(tier=tier)))

    generations = {layer.name: layer.reset_generation for layer in found}
    raised = "user_requests_per_month" if tier else "user_requests_per_day"
    assert generations.pop(raised) == 3
    assert set(generations.values()) == {0}


def test_what_was_reset_is_counted_anew_before_it_has_a_limit() -> None:
    resets = {("spend", "month"): 2, ("tokens", "minute"): 3, ("requests", "day"): 1}
    limits = {"user:u1": SubjectLimits(generations=resets), "ip:10.0.0.1": SubjectLimits()}
    service = Service(default_user_limits=(LimitEntry("requests", "day", 5),))

    plan = plan_in(service, limits, {}, principal())

    assert {each.name for each in plan.layers} == {"user_requests_per_day"}
    # Minutes have no sum in the ledger that a later limit could begin with.
    assert dict(plan.generations) == {"user_spend_per_month": 2, "user_requests_per_day": 1}


def test_of_two_generations_the_higher_counts_and_none_goes_back() -> None:
    def generation(given: int, reset: int, now_ms: int) -> int:
        own = (LimitEntry("requests", "day", 5, reset_generation=given),)
        configured = SubjectLimits(own, (until(9),), {("requests", "day"): reset})
        [layer] = layers_for(Service(), {"user:u1": configured}, {}, principal(), now_ms=now_ms)
        return layer.reset_generation

    assert generation(4, 2, now_ms=9) == 4
    assert generation(2, 4, now_ms=9) == 4
    assert generation(4, 2, now_ms=8) == 4


def test_a_reset_address_starts_anew_for_every_tier_there() -> None:
    limits = {f"ip:{ADDRESS}": SubjectLimits(generations={("requests", "day"): 2})}

    found = layers_for(Service(), limits, TIERS, DEVICE, ADDRESS)

    [layer] = (each for each in found if each.subject_kind is SubjectKind.IP)
    assert (layer.reset_generation, layer.capacity) == (2, 500)
    assert layer.subject_id == f"pro-{address_digest(ADDRESS)}"


def test_endpoints_and_models_are_counted_for_everybody_in_utc_and_shown_to_nobody() -> None:
    entries = (LimitEntry("requests", "day", 8), LimitEntry("spend", "month", 9, is_hard=False))
    limits = {"endpoint:chat": entries, "model:ft:gpt-4o": entries, "model:other": entries}
    caller = principal(user=user(organization=organization(time_zone="Asia/Tokyo")))

    plan = plan_in(Service(), limits, {}, caller, endpoint="chat", model="ft:gpt-4o")

    found = [(each.name, each.subject_id, each.is_hard) for each in plan.layers]
    assert found == [
        ("endpoint_requests_per_day", "chat", True),
        ("endpoint_spend_per_month", "chat", False),
        ("model_requests_per_day", "ft:gpt-4o", True),
        ("model_spend_per_month", "ft:gpt-4o", False),
    ]
    assert {each.time_zone for each in plan.layers} == {"UTC"}
    assert not any(each.has_public_figures for each in plan.layers)
    assert plan_in(Service(), limits, {}, caller, endpoint="messages").layers == ()
    assert plan_in(Service(), limits, {}, caller).layers == ()


def test_a_rate_reaches_its_layer_with_its_time_and_its_burst() -> None:
    entry = LimitEntry("requests", "rate", 10, every_ms=1000, burst=20)

    [layer] = layers_for(Service(), {"key:k1": (entry,)}, {}, principal())

    assert (layer.name, layer.capacity) == ("key_requests_rate", 10)
    assert (layer.every_ms, layer.most_at_once) == (1000, 20)


def test_only_a_tier_with_limits_of_addresses_counts_them() -> None:
    small = Tier("small", user_limits=PRO.user_limits)

    counted = [
        counts_addresses({**TIERS, "small": small}, principal(tier=tier))
        for tier in ("pro", "small", "gone", "")
    ]

    assert counted == [True, False, False, False]
