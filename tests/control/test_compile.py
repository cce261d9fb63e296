"""From resources to a snapshot: what is refused whole, what is set aside, what is tolerated."""

import asyncio
import gc
import time
from collections.abc import Iterable, Iterator

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from tollkeeper.common.v1 import devices_pb2, limits_pb2, rates_pb2
from tollkeeper.config.v1 import config_service_pb2 as config_pb
from tollkeeper.config.v1 import resources_pb2 as pb

from dataplane.control.compile import (
    Compiled,
    InvalidConfigurationError,
)
from dataplane.control.raw_resources import RawSecret
from dataplane.domain.calls import Dialect
from dataplane.domain.limiting import MAX_LAYERS, SubjectKind
from dataplane.domain.principals import DeviceStatus
from dataplane.domain.secret import Secret
from tests.control.configurations import (
    configuration,
    device,
    key,
    limit,
    resource,
    secret,
    sha256_of,
    subject_limits,
    temporary,
    tier,
)
from tests.control.large import compiled_at_once, raw

_BROKEN = b"\xff\xff\xff"
_RATE = limits_pb2.LIMIT_WINDOW_RATE
_REQUESTS, _DAY = limits_pb2.LIMIT_UNIT_REQUESTS, limits_pb2.LIMIT_WINDOW_DAY


def _reset(unit: int = _REQUESTS, window: int = _DAY, times: int = 1) -> limits_pb2.CounterReset:
    return limits_pb2.CounterReset(unit=unit, window=window, reset_generation=times)  # type: ignore[arg-type] # newer enum values too


async def _compiled(
    resources: Iterable[pb.Resource], secrets: Iterable[config_pb.SecretBundle] = ()
) -> Compiled:
    raw_secrets = {
        each.credential_id: RawSecret(each.credential_id, each.version, Secret(each.secret))
        for each in secrets
    }
    return await compiled_at_once(raw(resources), raw_secrets)


async def _problems(resources: Iterable[pb.Resource]) -> tuple[str, ...]:
    with pytest.raises(InvalidConfigurationError) as caught:
        await _compiled(resources)
    return caught.value.problems


def _with(*changed: pb.Resource) -> list[pb.Resource]:
    """Return a valid configuration in which `changed` stand instead of, or beside, the others."""
    given = {(each.kind, each.id): each for each in (*configuration(), *changed)}
    return list(given.values())


def _organization(**fields: object) -> pb.Resource:
    message = pb.Organization(name="acme")
    for name, value in fields.items():
        setattr(message, name, value)
    return resource(pb.RESOURCE_KIND_ORGANIZATION, "acme", message)


async def test_a_whole_configuration_becomes_a_snapshot() -> None:
    compiled = await _compiled(configuration(2), [secret()])

    snapshot = compiled.snapshot
    assert compiled.quarantined == ()
    assert snapshot.applied_at_ms == 1_000
    assert snapshot.service.max_replicas == 1
    found = snapshot.keys_by_sha256[sha256_of(1)]
    caller = found.principal
    assert (found.key_id, caller.user.user_id) == ("key000000001", "alice")
    assert caller.user.organization.time_zone == "Europe/Paris"
    assert caller.user.organization.default_output_cap_tokens == 4_096
    rules = snapshot.routers[caller.router_id].rules
    assert [(rule.rule_id, rule.weight) for rule in rules] == [("first", 1), ("second", 1)]
    assert rules[0].aliases == {"smart": "gpt-4o"}
    upstream = rules[0].provider
    assert upstream.endpoints == {Dialect.OPENAI: "https://api.openai.example/v1"}
    assert upstream.credentials[0].secret == Secret(b"sk-upstream-secret")


async def test_a_secret_of_another_version_does_not_count() -> None:
    snapshot = (await _compiled(configuration(), [secret(version=2)])).snapshot
    assert snapshot.routers["r1"].rules[0].provider.credentials[0].secret is None


async def test_missing_cached_rates_follow_from_the_input_rate() -> None:
    snapshot = (await _compiled(configuration())).snapshot
    found = snapshot.prices.find(["openai"], "gpt-4o", 0)
    assert found is not None
    assert (found.input, found.cache_read) == (2_500_000_001, 2_500_000_001)
    assert found.cache_write_5m == 3_125_000_002
    assert found.cache_write_1h == 5_000_000_002
    assert (found.price_id, found.revision) == ("price1", 7)


async def test_a_cached_rate_of_zero_is_kept() -> None:
    rates = rates_pb2.Rates(input_nanousd_per_million=5, cache_read_nanousd_per_million=0)
    message = pb.Price(provider="openai", model="m", rates=rates)
    snapshot = (
        await _compiled([*configuration(), resource(pb.RESOURCE_KIND_PRICE, "p", message)])
    ).snapshot
    found = snapshot.prices.find(["openai"], "m", 0)
    assert found is not None
    assert found.cache_read == 0


async def test_an_empty_configuration_is_a_snapshot_without_keys() -> None:
    assert not (await _compiled([])).snapshot.keys_by_sha256


@pytest.mark.parametrize(
    ("kind", "resource_id"),
    [
        (pb.RESOURCE_KIND_SERVICE, "service"),
        (pb.RESOURCE_KIND_ORGANIZATION, "acme"),
        (pb.RESOURCE_KIND_PROVIDER, "p1"),
        (pb.RESOURCE_KIND_CREDENTIAL, "c1"),
        (pb.RESOURCE_KIND_ROUTER, "r1"),
        (pb.RESOURCE_KIND_SUBJECT_LIMITS, "global"),
    ],
)
async def test_a_structural_resource_that_cannot_be_read_refuses_everything(
    kind: pb.ResourceKind.ValueType, resource_id: str
) -> None:
    broken = pb.Resource(kind=kind, id=resource_id, payload=_BROKEN)
    problems = await _problems(_with(broken))
    assert any(resource_id in problem for problem in problems)


@pytest.mark.parametrize(
    "changed",
    [
        _organization(time_zone="Europe/Atlantis"),
        _organization(time_zone="../../etc/passwd"),
        _organization(time_zone="Europe"),
        _organization(default_output_cap_tokens=-1),
        subject_limits("user:alice", [limit(capacity=-1)]),
        subject_limits("user:alice", [limit(capacity=2**53 + 1)]),
        subject_limits("user:alice", [limit(reset_generation=-1)]),
        subject_limits("user:alice", [limit(unit=limits_pb2.LIMIT_UNIT_UNSPECIFIED)]),
        subject_limits("user:alice", [limit(window=limits_pb2.LIMIT_WINDOW_UNSPECIFIED)]),
        subject_limits(
            "user:alice",
            [limit(limits_pb2.LIMIT_UNIT_SPEND, limits_pb2.LIMIT_WINDOW_MINUTE)],
        ),
        subject_limits("user:alice", [limit(capacity=1), limit(capacity=2)]),
        subject_limits("organization:acme", [limit(capacity=1), limit(capacity=2)]),
        subject_limits("user:alice", [limit(window=_RATE)]),
        subject_limits("user:alice", [limit(window=_RATE, every_ms=86_400_001)]),
        subject_limits("user:alice", [limit(window=_RATE, every_ms=1, capacity=101)]),
        subject_limits("user:alice", [limit(window=_RATE, every_ms=1_000, burst=-1)]),
        subject_limits("user:alice", [limit(every_ms=1_000)]),
        subject_limits("user:alice", [limit(burst=2)]),
        subject_limits(
            "user:alice", [limit(limits_pb2.LIMIT_UNIT_TOKENS, window=_RATE, every_ms=1_000)]
        ),
        subject_limits("endpoint:", [limit()]),
        subject_limits("model:", [limit()]),
        subject_limits("user:alice", (), [temporary(limit(capacity=-1))]),
        subject_limits("user:alice", (), [temporary(limit()), temporary(limit(), 9_000)]),
        subject_limits("user:alice", (), [limits_pb2.TemporaryLimit(limit=limit())]),
        subject_limits("user:alice", (), [limits_pb2.TemporaryLimit(until=Timestamp(seconds=9))]),
        subject_limits(
            "user:alice",
            (),
            [limits_pb2.TemporaryLimit(limit=limit(), until=Timestamp(seconds=2**60))],
        ),
        subject_limits("user:alice", resets=[_reset(times=-1)]),
        subject_limits("user:alice", resets=[_reset(), _reset(times=2)]),
        subject_limits("user:alice", resets=[_reset(unit=limits_pb2.LIMIT_UNIT_UNSPECIFIED)]),
        resource(
            pb.RESOURCE_KIND_SERVICE, "service", pb.Service(default_user_limits=[limit(), limit()])
        ),
        resource(
            pb.RESOURCE_KIND_SUBJECT_LIMITS,
            "user:alice",
            pb.SubjectLimits(subject_kind=limits_pb2.SUBJECT_KIND_USER, subject_id="bob"),
        ),
        resource(
            pb.RESOURCE_KIND_ROUTER,
            "r1",
            pb.Router(rules=[pb.Rule(id="a", provider_id="nobody", models=["*"])]),
        ),
        resource(pb.RESOURCE_KIND_CREDENTIAL, "c1", pb.Credential(provider_id="nobody", version=3)),
    ],
    ids=lambda each: str(each.id),
)
async def test_an_invalid_structure_refuses_everything(changed: pb.Resource) -> None:
    assert await _problems(_with(changed))


async def test_a_provider_whose_credential_is_missing_refuses_everything() -> None:
    assert await _problems(
        [each for each in configuration() if each.kind != pb.RESOURCE_KIND_CREDENTIAL]
    )


async def test_a_credential_of_another_provider_never_reaches_this_one() -> None:
    other = resource(pb.RESOURCE_KIND_PROVIDER, "p2", pb.Provider(credential_ids=["c1"]))
    problems = await _problems(_with(other))
    assert any("p2" in problem and "c1" in problem for problem in problems)


@pytest.mark.parametrize(
    "base_url",
    [
        "",
        "api.openai.example/v1",
        "file:///etc/passwd",
        "https://user:word@host/v1",
        "https://:word@host/v1",
        "https://host/v1?key=1",
        "https://host/v1#part",
        "https://host:99999/v1",
        "https://ho st/v1",
        "https://host/v1\r\nx-evil: 1",
        "https://[::1/v1",
    ],
)
async def test_a_base_url_that_is_no_base_url_refuses_everything(base_url: str) -> None:
    message = pb.Provider(
        endpoints=[pb.Endpoint(dialect=pb.DIALECT_OPENAI, base_url=base_url)],
        credential_ids=["c1"],
    )
    assert await _problems(_with(resource(pb.RESOURCE_KIND_PROVIDER, "p1", message)))


async def test_two_endpoints_of_one_dialect_refuse_everything() -> None:
    endpoint = pb.Endpoint(dialect=pb.DIALECT_OPENAI, base_url="https://host/v1")
    message = pb.Provider(endpoints=[endpoint, endpoint], credential_ids=["c1"])
    assert await _problems(_with(resource(pb.RESOURCE_KIND_PROVIDER, "p1", message)))


async def test_a_caller_whom_more_layers_count_than_can_be_checked_is_set_aside() -> None:
    units = (limits_pb2.LIMIT_UNIT_REQUESTS, limits_pb2.LIMIT_UNIT_TOKENS)
    windows = (1, 2, 3, 4)
    many = [limit(unit, window) for unit in units for window in windows]
    subjects = ("global", "organization:acme", "user:alice", "key:key000000000")
    at_most = [subject_limits(subject, many) for subject in subjects[:3]]

    snapshot = (await _compiled(_with(*at_most))).snapshot
    plan = snapshot.plan_for(
        snapshot.keys_by_sha256[sha256_of(0)].principal, "203.0.113.7", "", "", 0
    )
    assert len(plan.layers) == MAX_LAYERS
    one_more = subject_limits(subjects[3], [limit()])
    crowded = await _compiled(_with(*at_most, one_more))
    assert sha256_of(0) not in crowded.snapshot.keys_by_sha256
    assert any("24" in each.detail for each in crowded.quarantined)
    of_an_address = subject_limits("ip:203.0.113.7", [limit()])
    assert any("25" in detail for detail in await _details(_with(*at_most, of_an_address)))
    for_a_while = subject_limits("model:gpt-4o", (), [temporary(limit())])
    assert (
        "25 limits can apply to one call of it"
        " (global 8, organization 8, user 8, model 1); at most 24 may"
    ) in await _details(_with(*at_most, for_a_while))


async def test_layers_of_tiers_count_towards_what_a_request_may_have() -> None:
    windows = (1, 2, 3, 4)
    many = [limit(unit, window) for unit in (1, 2) for window in windows]
    subjects = [subject_limits(subject, many) for subject in ("global", "organization:acme")]
    user = pb.User(name="acme/alice", organization_id="acme", tier="pro")
    alice = resource(pb.RESOURCE_KIND_USER, "alice", user)
    full = [*subjects, alice, tier(user_limits=many[:6], ip_limits=[limit()])]

    details = await _details(_with(*full, tier(user_limits=many, ip_limits=[limit()])))

    assert any("25" in detail for detail in details)
    assert (await _compiled(_with(*full, device(1)))).quarantined == ()
    crowded = tier(user_limits=many[:6], ip_limits=[limit()], device_limits=many[:2])
    quarantined = (await _compiled(_with(*full, crowded, device(1)))).quarantined
    assert [each.resource_id for each in quarantined if "25" in each.detail] == ["device1"]


async def _details(resources: Iterable[pb.Resource]) -> list[str]:
    """Return what is wrong with the leaves that are set aside."""
    return [each.detail for each in (await _compiled(resources)).quarantined]


async def test_devices_are_found_by_their_tokens_with_whose_they_are() -> None:
    status = devices_pb2.DEVICE_STATUS_SUSPENDED
    suspended = device(2, status=status, suspended_until_s=60, suspension_reason="loud")
    waiting = device(3, user_id="", router_id="", status=devices_pb2.DEVICE_STATUS_PENDING_APPROVAL)
    newer = device(4, status=99)

    compiled = await _compiled(_with(device(1, tier="pro"), suspended, waiting, newer, tier()))

    found = compiled.snapshot.devices_by_sha256
    assert compiled.quarantined == ()
    caller = found[sha256_of(1001)].principal
    assert caller is not None
    assert (caller.principal_id, caller.user.user_id, caller.tier) == ("device1", "alice", "pro")
    assert (caller.kind, caller.router_id, caller.is_device) == (SubjectKind.DEVICE, "r1", True)
    second = found[sha256_of(1002)]
    assert (second.suspended_until_ms, second.suspension_reason) == (60_000, "loud")
    assert second.status_at(59_999) is DeviceStatus.SUSPENDED
    assert second.status_at(60_000) is DeviceStatus.APPROVED
    assert found[sha256_of(1003)].principal is None
    assert found[sha256_of(1003)].status is DeviceStatus.PENDING_APPROVAL
    assert found[sha256_of(1004)].status is DeviceStatus.UNKNOWN


async def test_a_bad_device_is_set_aside_and_the_others_call() -> None:
    short = device(1)
    short.payload = pb.Device(user_id="alice", token_sha256=b"short").SerializeToString()
    twin = resource(pb.RESOURCE_KIND_DEVICE, "twin", pb.Device.FromString(device(4).payload))
    devices = [short, device(2, user_id="nobody"), device(3), device(4), twin]

    compiled = await _compiled(_with(*devices))

    assert compiled.snapshot.devices_by_sha256.keys() == {sha256_of(1003)}
    aside = {each.resource_id for each in compiled.quarantined}
    assert aside == {"device1", "device2", "device4", "twin"}


async def test_a_tier_that_cannot_be_read_refuses_everything() -> None:
    nameless = resource(pb.RESOURCE_KIND_TIER, "pro", pb.Tier())
    twice = tier(ip_limits=[limit(), limit()])

    assert await _problems(_with(nameless))
    assert await _problems(_with(twice))


async def test_a_caller_has_a_plan_for_each_address_where_addresses_count() -> None:
    own = subject_limits("ip:2001:db8:0:1::/64", [limit(capacity=3)])
    snapshot = (await _compiled(_with(own))).snapshot
    caller = snapshot.keys_by_sha256[sha256_of(0)].principal

    here = snapshot.plan_for(caller, "2001:db8:0:1::7", "", "", 0)
    elsewhere = snapshot.plan_for(caller, "2001:db8:0:2::7", "", "", 0)

    assert [layer.name for layer in here.layers] == ["ip_requests_per_day"]
    assert elsewhere.layers == ()
    assert snapshot.plan_for(caller, "2001:db8:0:1::8", "", "", 0) is here
    plain = (await _compiled(_with())).snapshot
    caller = plain.keys_by_sha256[sha256_of(0)].principal
    assert plain.plan_for(caller, "203.0.113.7", "", "", 0) is plain.plan_for(
        caller, "203.0.113.8", "", "", 0
    )


async def test_rates_endpoints_models_and_what_is_temporary_reach_the_plan_of_a_call() -> None:
    rate = limit(window=_RATE, capacity=10, every_ms=1_000, burst=20)
    any_rate = limit(window=_RATE, capacity=0, unlimited=True)
    day = limit(capacity=3)
    compiled = await _compiled(
        _with(
            subject_limits("user:alice", [day], [temporary(limit(capacity=9))], [_reset(times=4)]),
            subject_limits("key:key000000000", [rate]),
            subject_limits("organization:acme", [any_rate]),
            subject_limits("endpoint:chat", [day]),
            subject_limits("model:ft:gpt-4o:acme", [day]),
        )
    )

    assert compiled.quarantined == ()
    snapshot = compiled.snapshot
    caller = snapshot.keys_by_sha256[sha256_of(0)].principal
    plan = snapshot.plan_for(caller, "203.0.113.7", "chat", "ft:gpt-4o:acme", 1_000)
    layers = {layer.name: layer for layer in plan.layers}
    assert {name: layer.capacity for name, layer in layers.items()} == {
        "user_requests_per_day": 9,
        "key_requests_rate": 10,
        "endpoint_requests_per_day": 3,
        "model_requests_per_day": 3,
    }
    assert (layers["key_requests_rate"].every_ms, layers["key_requests_rate"].burst) == (1_000, 20)
    assert layers["model_requests_per_day"].subject_id == "ft:gpt-4o:acme"
    assert layers["user_requests_per_day"].reset_generation == 4
    assert plan.valid_until_ms == 5_000
    after = snapshot.plan_for(caller, "203.0.113.7", "messages", "gpt-4o", 5_000)
    assert [each.reset_generation for each in after.layers] == [4, 0]
    assert [each.capacity for each in after.layers] == [3, 10]
    assert [each.name for each in after.layers] == ["user_requests_per_day", "key_requests_rate"]


async def test_a_temporary_limit_that_is_over_does_not_come_back_when_the_clock_does() -> None:
    over = [temporary(limit(capacity=1), 1_000)]
    snapshot = (await _compiled(_with(subject_limits("user:alice", (), over)))).snapshot
    caller = snapshot.keys_by_sha256[sha256_of(0)].principal

    assert snapshot.plan_for(caller, "", "", "", 0).layers == ()


async def test_what_an_organization_wants_while_counters_are_away_is_known() -> None:
    def fails_open(compiled: Compiled) -> bool:
        caller = compiled.snapshot.keys_by_sha256[sha256_of(0)].principal
        return caller.user.organization.fails_open

    policies = (
        pb.LIMITS_UNAVAILABLE_POLICY_UNSPECIFIED,
        pb.LIMITS_UNAVAILABLE_POLICY_CLOSED,
        pb.LIMITS_UNAVAILABLE_POLICY_OPEN,
        99,
    )
    found = [
        fails_open(await _compiled(_with(_organization(on_limits_unavailable=policy))))
        for policy in policies
    ]

    assert found == [False, False, True, False]


async def test_at_most_twenty_problems_are_told() -> None:
    routers = [
        pb.Resource(kind=pb.RESOURCE_KIND_ROUTER, id=f"router{number}", payload=_BROKEN)
        for number in range(50)
    ]
    assert len(await _problems([*configuration(), *routers])) == 20


@pytest.mark.parametrize(
    "bad",
    [
        pb.Resource(kind=pb.RESOURCE_KIND_API_KEY, id="key000000000", payload=_BROKEN),
        resource(pb.RESOURCE_KIND_API_KEY, "key000000000", pb.ApiKey()),
        key(0, key_sha256=b"short"),
        resource(
            pb.RESOURCE_KIND_API_KEY,
            "key000000000",
            pb.ApiKey(
                user_id="alice",
                key_sha256=sha256_of(0),
                router_id="r1",
                expires_at=Timestamp(seconds=2**60),
            ),
        ),
    ],
)
async def test_a_bad_key_is_set_aside_and_the_others_work(bad: pb.Resource) -> None:
    compiled = await _compiled([*configuration(0), bad, key(1)])
    assert set(compiled.snapshot.keys_by_sha256) == {sha256_of(1)}
    assert [each.resource_id for each in compiled.quarantined] == ["key000000000"]


async def test_two_keys_with_one_hash_are_both_set_aside() -> None:
    twin = pb.Resource(kind=pb.RESOURCE_KIND_API_KEY, id="twin", payload=key(0).payload)
    third = pb.Resource(kind=pb.RESOURCE_KIND_API_KEY, id="third", payload=key(0).payload)
    compiled = await _compiled([*configuration(2), twin, third])
    assert set(compiled.snapshot.keys_by_sha256) == {sha256_of(1)}
    assert {each.resource_id for each in compiled.quarantined} == {"key000000000", "twin", "third"}


async def test_a_key_of_a_user_that_was_set_aside_does_not_work() -> None:
    broken = pb.Resource(kind=pb.RESOURCE_KIND_USER, id="alice", payload=_BROKEN)
    compiled = await _compiled(_with(broken))
    assert not compiled.snapshot.keys_by_sha256
    assert "alice" in {each.resource_id for each in compiled.quarantined}


async def test_a_revoked_key_never_authenticates() -> None:
    found = (await _compiled(_with(key(0, revoked=True)))).snapshot.keys_by_sha256
    assert sha256_of(0) not in found or found[sha256_of(0)].is_revoked


async def test_an_expiry_is_kept_in_milliseconds() -> None:
    message = pb.ApiKey(
        user_id="alice", key_sha256=sha256_of(0), expires_at=Timestamp(seconds=7, nanos=5_000_000)
    )
    changed = resource(pb.RESOURCE_KIND_API_KEY, "key000000000", message)
    found = (await _compiled(_with(changed))).snapshot.keys_by_sha256[sha256_of(0)]
    assert found.expires_at_ms == 7_005


@pytest.mark.parametrize(
    "bad",
    [
        pb.Resource(kind=pb.RESOURCE_KIND_PRICE, id="price1", payload=_BROKEN),
        resource(pb.RESOURCE_KIND_PRICE, "price1", pb.Price(provider="openai", model="gpt-4o")),
        resource(
            pb.RESOURCE_KIND_PRICE,
            "price1",
            pb.Price(
                provider="openai",
                model="gpt-4o",
                rates=rates_pb2.Rates(input_nanousd_per_million=-1),
            ),
        ),
        resource(
            pb.RESOURCE_KIND_PRICE,
            "price1",
            pb.Price(
                provider="openai",
                model="gpt-4o",
                rates=rates_pb2.Rates(
                    input_nanousd_per_million=1, cache_read_nanousd_per_million=-1
                ),
            ),
        ),
    ],
)
async def test_a_bad_price_is_set_aside_and_prices_nothing(bad: pb.Resource) -> None:
    compiled = await _compiled(_with(bad))
    assert compiled.snapshot.prices.find(["openai"], "gpt-4o", 0) is None
    assert [each.resource_id for each in compiled.quarantined] == ["price1"]


@pytest.mark.parametrize(
    "bad",
    [
        pb.Price(model="gpt-4o"),
        pb.Price(model="gpt-4o", rates=rates_pb2.Rates(request_nanousd=-1)),
        pb.Price(
            model="gpt-4o",
            rates=rates_pb2.Rates(input_nanousd_per_million=1, cache_read_nanousd_per_million=-1),
        ),
        pb.Price(model="gpt-4o", free=True, effective_from=Timestamp(seconds=-(2**60))),
    ],
    ids=["no rates", "a negative rate", "a negative cached rate", "no time"],
)
@pytest.mark.parametrize("other_model", ["gpt-4o", "gpt-*"])
async def test_what_a_bad_price_was_to_price_costs_nothing_older_and_nothing_wider(
    bad: pb.Price, other_model: str
) -> None:
    bad.provider = "openai"
    if not bad.HasField("effective_from"):
        bad.effective_from.FromMilliseconds(500)
    other = pb.Price(provider="openai", model=other_model, free=True)
    compiled = await _compiled(
        _with(
            resource(pb.RESOURCE_KIND_PRICE, "price0", bad),
            resource(pb.RESOURCE_KIND_PRICE, "price1", other),
        )
    )
    assert compiled.snapshot.prices.find(["openai"], "gpt-4o", 500) is None
    assert [each.resource_id for each in compiled.quarantined] == ["price0"]


async def test_a_bad_price_that_is_to_begin_later_prices_nothing_then() -> None:
    never = pb.Price(provider="openai", model="gpt-4o", effective_from=Timestamp(seconds=2**40))
    compiled = await _compiled(_with(resource(pb.RESOURCE_KIND_PRICE, "price0", never)))
    assert compiled.snapshot.prices.find(["openai"], "gpt-4o", 500) is not None
    assert [each.resource_id for each in compiled.quarantined] == ["price0"]


async def test_a_model_may_be_free_by_an_administrators_word() -> None:
    free = resource(
        pb.RESOURCE_KIND_PRICE, "price1", pb.Price(provider="openai", model="gpt-4o", free=True)
    )
    found = (await _compiled(_with(free))).snapshot.prices.find(["openai"], "gpt-4o", 0)
    assert found is not None
    assert found.dearest_input == 0


async def test_what_a_newer_control_plane_says_matches_nothing() -> None:
    newer_limits = resource(
        pb.RESOURCE_KIND_SUBJECT_LIMITS,
        "team:blue",
        pb.SubjectLimits(subject_kind=99, subject_id="blue", limits=[limit()]),  # type: ignore[arg-type]
    )
    newer_provider = pb.Provider(
        endpoints=[
            pb.Endpoint(dialect=99, base_url="gopher://host"),  # type: ignore[arg-type]
            pb.Endpoint(dialect=pb.DIALECT_ANTHROPIC, base_url="https://host/"),
        ],
        credential_ids=["c1"],
    )
    compiled = await _compiled(
        _with(
            pb.Resource(kind=99, id="anything", payload=_BROKEN),  # type: ignore[arg-type]
            pb.Resource(kind=98, id="phone", payload=_BROKEN),  # type: ignore[arg-type]
            newer_limits,
            resource(pb.RESOURCE_KIND_PROVIDER, "p1", newer_provider),
            subject_limits(
                "user:alice",
                [limit(unit=99), limit(window=99), limit(capacity=3)],
                [temporary(limit(unit=99)), temporary(limit(window=99, capacity=-1))],
                [_reset(unit=99), _reset(window=99, times=-1)],
            ),
        )
    )
    snapshot = compiled.snapshot
    assert compiled.quarantined == ()
    assert [entry.capacity for entry in snapshot.limits["user:alice"].own] == [3]
    assert snapshot.routers["r1"].rules[0].provider.endpoints == {Dialect.ANTHROPIC: "https://host"}
    caller = snapshot.keys_by_sha256[sha256_of(0)].principal
    assert len(snapshot.plan_for(caller, "", "", "", 0).layers) == 1


@pytest.fixture
def settled_heap() -> Iterator[None]:
    """Collect garbage as the running program does: what stands at the start is left alone."""
    threshold = gc.get_threshold()
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)
    yield
    gc.set_threshold(*threshold)
    gc.unfreeze()


@pytest.mark.usefixtures("settled_heap")
async def test_a_large_configuration_does_not_hold_the_event_loop() -> None:
    resources = configuration(20_000)
    held = raw(resources)
    holds_seconds: list[float] = []

    async def beat() -> None:
        while True:
            # The time of this thread: what other processes take of the machine is not ours.
            before = time.thread_time()
            await asyncio.sleep(0)
            holds_seconds.append(time.thread_time() - before)

    heartbeat = asyncio.create_task(beat())
    compiled = await compiled_at_once(held)
    heartbeat.cancel()

    assert len(compiled.snapshot.keys_by_sha256) == 20_000
    assert len(holds_seconds) > 5
    # 8 ms on a core of one's own; two threads that share one get half of it each.
    assert max(holds_seconds) < 0.030
