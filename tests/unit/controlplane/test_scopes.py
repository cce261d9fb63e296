"""Whose a resource is follows from what it refers to."""

import pytest
from tollkeeper.config.v1 import resources_pb2 as pb

from controlplane.snapshots.references import ResourceKey
from controlplane.snapshots.scopes import (
    EVERYTHING,
    SHARED,
    UNRESOLVED,
    contains,
    owner_of,
    owners_in,
)

ORGANIZATION = ResourceKey(pb.RESOURCE_KIND_ORGANIZATION, "o")
USER = ResourceKey(pb.RESOURCE_KIND_USER, "u")
KEY = ResourceKey(pb.RESOURCE_KIND_API_KEY, "k")
DEVICE = ResourceKey(pb.RESOURCE_KIND_DEVICE, "d")
FREE_DEVICE = ResourceKey(pb.RESOURCE_KIND_DEVICE, "free")
OWN = ResourceKey(pb.RESOURCE_KIND_PROVIDER, "own")
COMMON = ResourceKey(pb.RESOURCE_KIND_PROVIDER, "common")
OWN_SECRET = ResourceKey(pb.RESOURCE_KIND_CREDENTIAL, "own-secret")
COMMON_SECRET = ResourceKey(pb.RESOURCE_KIND_CREDENTIAL, "common-secret")
ROUTER = ResourceKey(pb.RESOURCE_KIND_ROUTER, "r")
OWN_ROUTER = ResourceKey(pb.RESOURCE_KIND_ROUTER, "own")
KEY_LIMITS = ResourceKey(pb.RESOURCE_KIND_SUBJECT_LIMITS, "key:k")
MODEL_LIMITS = ResourceKey(pb.RESOURCE_KIND_SUBJECT_LIMITS, "model:m")
SERVICE = ResourceKey(pb.RESOURCE_KIND_SERVICE, "service")
PRICE = ResourceKey(pb.RESOURCE_KIND_PRICE, "p")
TIER = ResourceKey(pb.RESOURCE_KIND_TIER, "t")
ORPHAN = ResourceKey(pb.RESOURCE_KIND_API_KEY, "orphan")
NOBODY = ResourceKey(pb.RESOURCE_KIND_USER, "nobody")

TARGETS = {
    ORGANIZATION: (),
    USER: (ORGANIZATION,),
    KEY: (USER, ROUTER),
    DEVICE: (USER, ROUTER),
    FREE_DEVICE: (ROUTER,),
    OWN: (ORGANIZATION, OWN_SECRET),
    COMMON: (COMMON_SECRET,),
    OWN_SECRET: (OWN,),
    COMMON_SECRET: (COMMON,),
    ROUTER: (COMMON,),
    OWN_ROUTER: (ORGANIZATION, COMMON),
    KEY_LIMITS: (KEY,),
    MODEL_LIMITS: (),
    SERVICE: (),
    PRICE: (),
    TIER: (),
    ORPHAN: (NOBODY, ROUTER),
}
OWNERS = {
    ORGANIZATION: "o",
    USER: "o",
    KEY: "o",
    DEVICE: "o",
    FREE_DEVICE: SHARED,
    OWN: "o",
    COMMON: SHARED,
    OWN_SECRET: "o",
    COMMON_SECRET: SHARED,
    ROUTER: SHARED,
    OWN_ROUTER: "o",
    KEY_LIMITS: "o",
    MODEL_LIMITS: SHARED,
    SERVICE: SHARED,
    PRICE: SHARED,
    TIER: SHARED,
    ORPHAN: UNRESOLVED,
}


@pytest.mark.parametrize("key", TARGETS, ids=str)
def test_a_resource_belongs_to_the_organization_that_it_leads_to(key: ResourceKey) -> None:
    assert owner_of(key, TARGETS.get) == OWNERS[key]


def test_every_kind_has_an_owner() -> None:
    assert {key.kind for key in TARGETS} == set(pb.ResourceKind.values()) - {
        pb.RESOURCE_KIND_UNSPECIFIED
    }


def test_references_that_run_in_a_circle_lead_nowhere() -> None:
    assert owner_of(KEY, {KEY: (USER,), USER: (ORGANIZATION,)}.get) == UNRESOLVED


def test_a_scope_holds_its_organizations_and_what_is_everybodys() -> None:
    scope = frozenset({"o"})

    assert contains(scope, "o")
    assert contains(scope, SHARED)
    assert not contains(scope, "other")
    assert not contains(scope, UNRESOLVED)
    assert all(contains(EVERYTHING, owner) for owner in ("o", "other", SHARED, UNRESOLVED))
    by_owner = {SHARED: 1, "o": 2, "other": 4, UNRESOLVED: 8}
    assert sum(owners_in(by_owner, scope)) == 3
    assert sum(owners_in(by_owner, frozenset({"unknown"}))) == 1
    assert sum(owners_in(by_owner, EVERYTHING)) == 15
