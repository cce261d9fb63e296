"""Limits as an administrator sets them for a while, resets and removes, of every kind of subject."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import grpc
import pytest
from sqlmodel import select
from tollkeeper.admin.v1 import audit_service_pb2 as audit_pb
from tollkeeper.admin.v1 import limit_service_pb2 as pb
from tollkeeper.admin.v1 import organization_service_pb2 as organization_pb
from tollkeeper.admin.v1 import tier_service_pb2 as tier_pb
from tollkeeper.admin.v1 import user_service_pb2 as user_pb
from tollkeeper.common.v1 import limits_pb2
from tollkeeper.config.v1 import resources_pb2

from controlplane.snapshots.payloads import plain_message
from controlplane.store.database import Store
from controlplane.store.tables import SubjectLimits, Tombstone
from tests.rpc.admin_api import AdminApi, mask, refused
from tests.rpc.test_limits_prices_and_administrators import limit, set_limits
from tests.rpc.test_organizations_and_users import create_user

REQUESTS, TOKENS = limits_pb2.LIMIT_UNIT_REQUESTS, limits_pb2.LIMIT_UNIT_TOKENS
SPEND, PARALLEL = limits_pb2.LIMIT_UNIT_SPEND, limits_pb2.LIMIT_UNIT_PARALLEL
DAY, MONTH = limits_pb2.LIMIT_WINDOW_DAY, limits_pb2.LIMIT_WINDOW_MONTH
RATE, NONE = limits_pb2.LIMIT_WINDOW_RATE, limits_pb2.LIMIT_WINDOW_UNSPECIFIED
OPEN = resources_pb2.LIMITS_UNAVAILABLE_POLICY_OPEN
NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)


@pytest.fixture
def clock(store: Store) -> Iterator[list[datetime]]:
    """The control plane's clock, which a test moves: the last item is now."""
    now = [NOW]
    before = store.clock
    store.clock = lambda: now[-1]
    yield now
    store.clock = before


def temporary(each: limits_pb2.Limit, until: datetime) -> limits_pb2.TemporaryLimit:
    made = limits_pb2.TemporaryLimit(limit=each)
    made.until.FromDatetime(until)
    return made


def every_second(capacity: int, every_ms: int = 1000, burst: int = 0) -> limits_pb2.Limit:
    return limits_pb2.Limit(
        unit=REQUESTS, window=RATE, capacity=capacity, every_ms=every_ms, burst=burst
    )


async def override(
    api: AdminApi, subject: str, *limits: limits_pb2.TemporaryLimit, **fields: object
) -> pb.SubjectLimits:
    return await api.limits.SetTemporaryLimits(
        pb.SetTemporaryLimitsRequest(subject=subject, limits=limits, **fields)  # type: ignore[arg-type]  # fields by name
    )


async def reset(api: AdminApi, subject: str, *limits: limits_pb2.Limit) -> pb.SubjectLimits:
    return await api.limits.ResetCounters(pb.ResetCountersRequest(subject=subject, limits=limits))


async def get(api: AdminApi, subject: str) -> pb.SubjectLimits:
    return await api.limits.GetLimits(pb.GetLimitsRequest(subject=subject))


async def delete(
    api: AdminApi, subject: str, *limits: limits_pb2.Limit, temporary_only: bool = False
) -> None:
    await api.limits.DeleteLimits(
        pb.DeleteLimitsRequest(subject=subject, limits=limits, temporary_only=temporary_only)
    )


async def payload(store: Store, subject: str) -> resources_pb2.SubjectLimits | None:
    """Return what travels to the data planes of a subject's limits."""
    async with store.reading() as session:
        statement = select(SubjectLimits).where(SubjectLimits.name == subject)
        row = (await session.exec(statement)).one_or_none()
    if row is None:
        return None
    message = plain_message(row.KIND, row)
    assert isinstance(message, resources_pb2.SubjectLimits)
    return message


def resets_of(
    limits: pb.SubjectLimits | resources_pb2.SubjectLimits,
) -> dict[tuple[int, int], int]:
    return {(each.unit, each.window): each.reset_generation for each in limits.resets}


def capacities(limits: pb.SubjectLimits) -> tuple[list[int], list[int]]:
    """Return the capacities of lasting and of temporary limits."""
    lasting = [each.capacity for each in limits.limits]
    return lasting, [each.limit.capacity for each in limits.temporary_limits]


@pytest.mark.parametrize(
    "subject",
    ["endpoint:chat", "endpoint:my-route", "model:gpt-4o", f"model:{'m/' * 100}", "global"],
)
async def test_endpoint_classes_and_models_have_limits_under_their_words(
    api: AdminApi, store: Store, subject: str
) -> None:
    changed = await set_limits(api, subject, limit(REQUESTS, DAY, 10))

    assert changed.subject == subject
    assert await get(api, subject) == changed
    travels = await payload(store, subject)
    assert travels is not None
    kind, _, subject_id = subject.partition(":")
    assert travels.subject_id == subject_id
    assert travels.subject_kind == limits_pb2.SubjectKind.Value(f"SUBJECT_KIND_{kind.upper()}")
    await delete(api, subject)
    assert await payload(store, subject) is None
    async with store.reading() as session:
        (stone,) = (await session.exec(select(Tombstone))).all()
    assert stone.id == subject


async def test_a_rate_is_set_for_subjects_and_tiers_and_travels(
    api: AdminApi, store: Store
) -> None:
    changed = await set_limits(api, "ip:203.0.113.7", every_second(10, burst=20))
    tier = tier_pb.Tier(name="trial", user_limits=[every_second(5, 60_000)])
    made = await api.tiers.CreateTier(tier_pb.CreateTierRequest(tier=tier))

    assert list(changed.limits) == [every_second(10, burst=20)]
    assert list(made.user_limits) == [every_second(5, 60_000)]
    travels = await payload(store, "ip:203.0.113.7")
    assert travels is not None
    assert list(travels.limits) == [every_second(10, burst=20)]


async def test_what_is_no_rate_is_refused_with_its_field(api: AdminApi) -> None:
    for wrong, field in (
        (every_second(1, 0), "limits.limits[0].every_ms"),
        (every_second(200, 1), "limits.limits[0].capacity"),
        (limits_pb2.Limit(unit=TOKENS, window=RATE, every_ms=1), "limits.limits[0].window"),
        (limits_pb2.Limit(unit=REQUESTS, window=DAY, every_ms=1), "limits.limits[0].every_ms"),
        (limits_pb2.Limit(unit=REQUESTS, window=DAY, burst=1), "limits.limits[0].burst"),
        (every_second(1, 86_400_001), "limits.limits[0].every_ms"),
        (every_second(1, burst=-1), "limits.limits[0].burst"),
    ):
        refusal = await refused(set_limits(api, "global", wrong))

        assert (refusal.code, refusal.fields) == (grpc.StatusCode.INVALID_ARGUMENT, [field])


async def test_a_temporary_limit_stands_beside_the_others_until_it_is_over(
    api: AdminApi, store: Store, clock: list[datetime]
) -> None:
    await set_limits(api, "global", limit(REQUESTS, DAY, 10), limit(TOKENS, DAY, 5))

    changed = await override(
        api,
        "global",
        temporary(limit(REQUESTS, DAY, 99), NOW + HOUR),
        temporary(limits_pb2.Limit(unit=TOKENS, window=DAY, unlimited=True), NOW + 2 * HOUR),
    )

    assert capacities(changed) == ([10, 5], [99, 0])
    assert changed.temporary_limits[0].until.ToDatetime(UTC) == NOW + HOUR
    assert changed.temporary_limits[1].limit.unlimited
    assert await get(api, "global") == changed
    clock.append(NOW + HOUR)
    assert capacities(await get(api, "global")) == ([10, 5], [0])
    travels = await payload(store, "global")
    # What travels depends on no clock: a data plane knows when it is over.
    assert travels is not None
    assert travels.temporary_limits[0] == changed.temporary_limits[0]


async def test_temporary_limits_merge_and_what_is_over_goes_with_the_next_change(
    api: AdminApi, store: Store, clock: list[datetime]
) -> None:
    await override(
        api,
        "global",
        temporary(limit(REQUESTS, DAY, 1), NOW + HOUR),
        temporary(limit(TOKENS, DAY, 2), NOW + 3 * HOUR),
    )
    changed = await override(api, "global", temporary(limit(REQUESTS, DAY, 7), NOW + HOUR))
    assert capacities(changed) == ([], [7, 2])

    clock.append(NOW + 2 * HOUR)
    changed = await set_limits(api, "global", limit(REQUESTS, DAY, 3))

    assert capacities(changed) == ([3], [2])
    travels = await payload(store, "global")
    assert travels is not None
    assert len(travels.temporary_limits) == 1


async def test_a_subject_whose_temporary_limits_are_over_is_forgotten_with_its_next_change(
    api: AdminApi, store: Store, clock: list[datetime]
) -> None:
    await override(api, "global", temporary(limit(REQUESTS, DAY, 1), NOW + HOUR))
    clock.append(NOW + HOUR)

    await delete(api, "global", temporary_only=True)

    assert await payload(store, "global") is None


async def test_a_temporary_limit_that_is_none_is_refused(
    api: AdminApi, clock: list[datetime]
) -> None:
    later = NOW + HOUR
    for wrong, field in (
        (temporary(limit(REQUESTS, DAY, 1), NOW), "limits[0].until"),
        (
            temporary(limit(SPEND, limits_pb2.LIMIT_WINDOW_MINUTE, 1), later),
            "limits[0].limit.window",
        ),
        (temporary(limit(REQUESTS, DAY, -1), later), "limits[0].limit.capacity"),
        (limits_pb2.TemporaryLimit(limit=limit(REQUESTS, DAY, 1)), "limits[0].until"),
    ):
        refusal = await refused(override(api, "global", wrong))

        assert (refusal.code, refusal.fields) == (grpc.StatusCode.INVALID_ARGUMENT, [field])
    same = [temporary(limit(REQUESTS, DAY, each), later) for each in (1, 2)]
    assert (await refused(override(api, "global", *same))).fields == ["limits[1]"]
    assert (await refused(override(api, "global"))).fields == ["limits"]
    assert await get(api, "global") == pb.SubjectLimits(subject="global")


async def test_nothing_is_overridden_or_reset_of_a_subject_that_does_not_exist(
    api: AdminApi,
) -> None:
    for subject in ("user:acme/nobody", "key:a/b/c", "organization:x", "device:3k2f9a0b1c2d"):
        until = datetime.now(UTC) + HOUR
        for call in (
            override(api, subject, temporary(limit(REQUESTS, DAY, 1), until)),
            reset(api, subject),
        ):
            assert (await refused(call)).code is grpc.StatusCode.NOT_FOUND


async def test_a_dry_run_of_an_override_or_a_reset_changes_nothing(
    api: AdminApi, clock: list[datetime]
) -> None:
    shown = await override(
        api, "global", temporary(limit(REQUESTS, DAY, 1), NOW + HOUR), validate_only=True
    )
    dry = await api.limits.ResetCounters(
        pb.ResetCountersRequest(subject="global", validate_only=True)
    )

    assert capacities(shown) == ([], [1])
    assert len(dry.resets) == 12
    assert await get(api, "global") == pb.SubjectLimits(subject="global")


async def test_a_reset_that_is_repeated_under_its_request_id_is_made_once(api: AdminApi) -> None:
    request = pb.ResetCountersRequest(
        subject="global", limits=[limit(REQUESTS, DAY, 0)], request_id="r1"
    )

    first = await api.limits.ResetCounters(request)
    again = await api.limits.ResetCounters(request)

    assert first == again == await get(api, "global")
    assert resets_of(first) == {(REQUESTS, DAY): 1}


async def test_a_reset_raises_generations_and_leaves_the_limits_as_they_are(
    api: AdminApi, store: Store
) -> None:
    await set_limits(api, "endpoint:chat", limit(REQUESTS, DAY, 10), limit(TOKENS, DAY, 5))

    await reset(api, "endpoint:chat", limit(TOKENS, DAY, 0))
    changed = await reset(api, "endpoint:chat", limit(TOKENS, DAY, 0), every_second(0))

    assert capacities(changed) == ([10, 5], [])
    assert [each.reset_generation for each in changed.limits] == [0, 2]
    assert resets_of(changed) == {(REQUESTS, RATE): 1, (TOKENS, DAY): 2}
    travels = await payload(store, "endpoint:chat")
    assert travels is not None
    assert resets_of(travels) == resets_of(changed)


async def test_a_subject_without_limits_of_its_own_is_reset_too(api: AdminApi) -> None:
    await api.create_organization("acme")
    await create_user(api, "acme/alice")

    changed = await reset(api, "user:acme/alice")

    assert capacities(changed) == ([], [])
    assert set(resets_of(changed).values()) == {1}
    assert len(changed.resets) == 12
    again = await reset(api, "user:acme/alice")
    assert set(resets_of(again).values()) == {2}
    assert again.revision == changed.revision + 1


async def test_generations_outlive_the_limits_and_go_with_their_subject(
    api: AdminApi, store: Store
) -> None:
    await api.create_organization("acme")
    await create_user(api, "acme/alice")
    await set_limits(api, "user:acme/alice", limit(REQUESTS, DAY, 10))
    await reset(api, "user:acme/alice", limit(REQUESTS, DAY, 0))

    await delete(api, "user:acme/alice")

    left = await get(api, "user:acme/alice")
    assert capacities(left) == ([], [])
    assert resets_of(left) == {(REQUESTS, DAY): 1}
    changed = await set_limits(api, "user:acme/alice", limit(REQUESTS, DAY, 3))
    assert changed.limits[0].reset_generation == 1
    result = await api.users.DeleteUser(user_pb.DeleteUserRequest(name="acme/alice"))
    assert list(result.also_deleted) == ["limits user:acme/alice"]
    await create_user(api, "acme/alice")
    assert await get(api, "user:acme/alice") == pb.SubjectLimits(subject="user:acme/alice")


async def test_what_cannot_be_reset_is_refused(api: AdminApi) -> None:
    for wrong, field in (
        (limit(PARALLEL, NONE, 0), "limits[0].unit"),
        (limit(SPEND, RATE, 0), "limits[0].window"),
    ):
        refusal = await refused(reset(api, "global", wrong))

        assert (refusal.code, refusal.fields) == (grpc.StatusCode.INVALID_ARGUMENT, [field])


async def test_temporary_limits_are_removed_alone_or_with_the_lasting_ones(
    api: AdminApi, clock: list[datetime]
) -> None:
    async def prepare() -> None:
        await set_limits(api, "global", limit(REQUESTS, DAY, 1), limit(TOKENS, DAY, 2))
        await override(
            api,
            "global",
            temporary(limit(REQUESTS, DAY, 3), NOW + HOUR),
            temporary(limit(TOKENS, DAY, 4), NOW + HOUR),
        )

    await prepare()
    await delete(api, "global", limit(TOKENS, DAY, 0), temporary_only=True)
    assert capacities(await get(api, "global")) == ([1, 2], [3])
    await delete(api, "global", temporary_only=True)
    assert capacities(await get(api, "global")) == ([1, 2], [])
    await prepare()
    await delete(api, "global", limit(REQUESTS, DAY, 0))
    assert capacities(await get(api, "global")) == ([2], [4])
    await delete(api, "global")
    assert await get(api, "global") == pb.SubjectLimits(subject="global")


async def test_what_was_seen_before_an_override_does_not_delete_it(
    api: AdminApi, clock: list[datetime]
) -> None:
    seen = await set_limits(api, "global", limit(REQUESTS, DAY, 1))
    await override(api, "global", temporary(limit(REQUESTS, DAY, 3), NOW + HOUR))

    late = api.limits.DeleteLimits(pb.DeleteLimitsRequest(subject="global", etag=seen.etag))

    assert (await refused(late)).code is grpc.StatusCode.ABORTED


async def test_an_organization_that_admits_without_counters_gets_no_hard_budget_for_a_while(
    api: AdminApi, clock: list[datetime]
) -> None:
    await api.create_organization("acme", on_limits_unavailable=OPEN)
    subject, hard = "organization:acme", limit(SPEND, MONTH, 5)
    soft = limits_pb2.Limit(unit=SPEND, window=MONTH, capacity=5, soft=True)

    refusal = await refused(override(api, subject, temporary(hard, NOW + HOUR)))
    allowed = await override(api, subject, temporary(soft, NOW + HOUR))

    assert refusal.code is grpc.StatusCode.FAILED_PRECONDITION
    assert capacities(allowed) == ([], [5])


async def test_an_organization_with_a_hard_budget_for_a_while_stays_closed_until_it_is_over(
    api: AdminApi, clock: list[datetime]
) -> None:
    await api.create_organization("acme")
    await override(api, "organization:acme", temporary(limit(SPEND, MONTH, 5), NOW + HOUR))
    update = organization_pb.UpdateOrganizationRequest(
        organization=organization_pb.Organization(name="acme", on_limits_unavailable=OPEN),
        update_mask=mask("on_limits_unavailable"),
    )

    refusal = await refused(api.organizations.UpdateOrganization(update))
    clock.append(NOW + HOUR)
    opened = await api.organizations.UpdateOrganization(update)

    assert refusal.code is grpc.StatusCode.FAILED_PRECONDITION
    assert opened.on_limits_unavailable == OPEN


async def test_overrides_and_resets_are_audited_with_what_changed(
    api: AdminApi, clock: list[datetime]
) -> None:
    await override(api, "model:gpt-4o", temporary(limit(REQUESTS, DAY, 3), NOW + HOUR))
    await reset(api, "model:gpt-4o", limit(REQUESTS, DAY, 0))

    listed = await api.audit.ListAuditEntries(
        audit_pb.ListAuditEntriesRequest(resource="model:gpt-4o")
    )

    assert [entry.rpc for entry in listed.entries] == ["ResetCounters", "SetTemporaryLimits"]
    (change,) = listed.entries[0].changes
    assert change.kind == "subject_limits"
    assert list(change.after) == ["resets"]
