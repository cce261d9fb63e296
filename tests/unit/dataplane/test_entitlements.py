from collections.abc import Mapping
from typing import Any

from dataplane.domain.entitlements import layers_for
from dataplane.domain.limiting import SubjectKind
from dataplane.domain.principals import LimitEntry, Service
from tests.unit.dataplane.configuration import api_key, organization, user

DEFAULT = LimitEntry("requests", "day", 1000)
SERVICE = Service(
    default_user_limits=(DEFAULT, LimitEntry("tokens", "day", 10**6)),
    default_global_limits=(LimitEntry("spend", "day", 500),),
)


def layers(limits: Mapping[str, tuple[LimitEntry, ...]], **of_user: Any) -> dict[str, int]:
    key = api_key(user=user(**of_user))
    return {layer.name: layer.capacity for layer in layers_for(SERVICE, limits, key)}


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

    assert layers(own, tier="pro") == {"global_spend_per_day": 500, "user_requests_per_minute": 2}


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

    found = layers_for(Service(), limits, api_key())

    subjects = [(layer.subject_kind, layer.subject_id) for layer in found]
    assert subjects == [
        (SubjectKind.GLOBAL, ""),
        (SubjectKind.ORGANIZATION, "o1"),
        (SubjectKind.USER, "u1"),
        (SubjectKind.KEY, "k1"),
    ]


def test_days_are_those_of_the_organization_and_the_services_those_of_utc() -> None:
    key = api_key(user=user(organization=organization(time_zone="Asia/Tokyo")))

    zones = {layer.subject_kind: layer.time_zone for layer in layers_for(SERVICE, {}, key)}

    assert zones == {SubjectKind.GLOBAL: "UTC", SubjectKind.USER: "Asia/Tokyo"}


def test_flags_and_generations_of_a_limit_reach_its_layer() -> None:
    entry = LimitEntry("spend", "month", 9, is_hard=False, is_shadow=True, reset_generation=4)

    [layer] = layers_for(Service(), {"key:k1": (entry,)}, api_key())

    assert (layer.is_hard, layer.is_shadow, layer.reset_generation) == (False, True, 4)
