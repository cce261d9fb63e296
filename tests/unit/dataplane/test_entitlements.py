from collections.abc import Iterable, Mapping
from typing import Any

from dataplane.domain.entitlements import layers_for
from dataplane.domain.limiting import Layer, SubjectKind
from dataplane.domain.principals import LimitEntry, Service, Tier
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


def layers(limits: Mapping[str, tuple[LimitEntry, ...]], **of_user: Any) -> dict[str, int]:
    caller = principal(user=user(**of_user))
    return capacities(layers_for(SERVICE, limits, TIERS, caller))


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
