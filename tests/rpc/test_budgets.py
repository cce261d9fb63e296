"""Budgets against the ledger, and when they were used to 80 and 100 percent."""

from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
from sqlalchemy import event as sqlalchemy_event
from tollkeeper.admin.v1 import budget_service_pb2 as pb
from tollkeeper.admin.v1 import organization_service_pb2 as organization_pb
from tollkeeper.admin.v1 import user_service_pb2 as user_pb
from tollkeeper.common.v1 import limits_pb2
from tollkeeper.usage.v1 import usage_service_pb2 as usage_pb

from controlplane.domain.counters import address_subject_id
from controlplane.domain.limits import Limit, LimitUnit, LimitWindow
from controlplane.domain.names import parse_subject
from controlplane.domain.service import ServiceDefaults
from controlplane.domain.subject_limits import CounterReset, SubjectLimitSet, TemporaryLimit
from controlplane.rpc import subject_names
from controlplane.rpc.limits import subject_id_of
from controlplane.rpc.pages import Page, page_of
from controlplane.rpc.usage_budget_events import rows_from_budget_events
from controlplane.rpc.usage_records import row_from_record
from controlplane.store import budget_events, ledger
from controlplane.store.database import Store
from controlplane.store.repositories import Repositories
from controlplane.store.service import apply_service_settings
from controlplane.store.subject_limits import limits_to_json, put_limit_set
from controlplane.store.tables import ApiKey, Device, Router
from tests.ledger.test_budget_events import counter, event
from tests.ledger.test_ledger import record
from tests.rpc.admin_api import AdminApi, refused

# In Auckland it is the next day, and the next month.
NOW = datetime(2026, 11, 30, 12, tzinfo=UTC)
DAY, MONTH, TOTAL = LimitWindow.DAY, LimitWindow.MONTH, LimitWindow.TOTAL


def budget(window: LimitWindow, capacity: int, **values: Any) -> Limit:
    return Limit(unit=LimitUnit.SPEND, window=window, capacity=capacity, **values)


@pytest.fixture
async def accounts(api: AdminApi, store: Store) -> dict[str, str]:
    """The ids of an organization in Auckland, a user and a key of it; the clock stands at `NOW`."""
    store.clock = lambda: NOW
    made = await api.create_organization("acme", time_zone="Pacific/Auckland")
    user = await api.users.CreateUser(
        user_pb.CreateUserRequest(user=user_pb.User(name="acme/alice"))
    )
    async with store.transaction("ann", "x") as tx:
        stamps: dict[str, Any] = {"created_at": tx.now, "updated_at": tx.now}
        tx.add(Router(id="router000000", name="main", **stamps))
        await tx.session.flush()
        tx.add(
            ApiKey(
                id="key000000000",
                name="acme/alice/laptop",
                user_id=user.id,
                router_id="router000000",
                sha256=b"x" * 32,
                display="tk_…",
                tier="free",
                **stamps,
            )
        )
        tx.add(
            Device(
                id="device000000",
                name="phone",
                token_sha256=b"y" * 32,
                status=2,
                user_id=user.id,
                tier="free",
                **stamps,
            )
        )
    return {"acme": made.id, "alice": user.id, "laptop": "key000000000"}


async def put(store: Store, subject: str, **limits: Any) -> None:
    """Set what a subject has: lists of a `SubjectLimitSet`."""
    async with store.transaction("ann", "x") as tx:
        name = parse_subject(subject, field="")
        row = tx.limits.new_row(
            name, await subject_id_of(tx, name), created_at=tx.now, updated_at=tx.now
        )
        put_limit_set(row, SubjectLimitSet(**limits))
        tx.add(row)


async def use(store: Store, *records: usage_pb.UsageRecord) -> None:
    async with store.ledger() as session:
        await ledger.record(session, [row_from_record(each) for each in records])


async def shown(api: AdminApi, **question: Any) -> list[pb.Budget]:
    answer = await api.budgets.ListBudgets(pb.ListBudgetsRequest(**question))
    return list(answer.budgets)


def brief(budgets: list[pb.Budget]) -> list[tuple[str, str, int, int]]:
    return [
        (each.subject, each.period_id, each.capacity_nanousd, each.spent_nanousd)
        for each in budgets
    ]


async def test_budgets_are_shown_with_what_was_spent_in_their_running_period(
    api: AdminApi, store: Store, accounts: dict[str, str]
) -> None:
    await put(store, "user:acme/alice", limits=(budget(TOTAL, 900), budget(MONTH, 90)))
    await put(store, "organization:acme", limits=(budget(DAY, 50, soft=True, shadow=True),))
    await put(store, "key:acme/alice/laptop", limits=(budget(DAY, 7),))
    await put(store, "device:device000000", limits=(budget(MONTH, 8),))
    await put(store, "ip:203.0.113.7", limits=(budget(DAY, 9),))
    await put(store, "model:gpt-4o", limits=(budget(DAY, 10),))
    await put(store, "global", limits=(budget(MONTH, 11),))
    tokens = Limit(unit=LimitUnit.TOKENS, window=DAY, capacity=1)
    await put(store, "endpoint:chat", limits=(tokens, budget(DAY, 0, unlimited=True)))
    whose: dict[str, Any] = {
        "organization_id": accounts["acme"],
        "user_id": accounts["alice"],
        "model": "gpt-4o",
        "address_subjects": [address_subject_id("203.0.113.7")],
        "service_day": "20261130",
    }
    running: dict[str, Any] = {"usage_day": "20261201", "usage_month": "202612"}
    before: dict[str, Any] = {"usage_day": "20261130", "usage_month": "202611"}
    await use(
        store,
        record(1, **whose, **running, key_id=accounts["laptop"], charged_nanousd=1),
        record(2, **whose, **running, device_id="device000000", charged_nanousd=2),
        record(3, **whose, **before, key_id=accounts["laptop"], charged_nanousd=4),
    )

    found = await shown(api)

    assert brief(found) == [
        ("device:device000000", "202612", 8, 2),
        ("global", "202611", 11, 7),
        ("ip:203.0.113.7", "20261130", 9, 7),
        ("key:acme/alice/laptop", "20261201", 7, 1),
        ("model:gpt-4o", "20261130", 10, 7),
        ("organization:acme", "20261201", 50, 3),
        ("user:acme/alice", "202612", 90, 3),
        ("user:acme/alice", "total", 900, 7),
    ]
    assert [(each.soft, each.shadow) for each in found if each.subject == "organization:acme"] == [
        (True, True)
    ]
    assert found[-1].window == limits_pb2.LIMIT_WINDOW_TOTAL


async def test_a_temporary_budget_counts_while_it_runs(
    api: AdminApi, store: Store, accounts: dict[str, str]
) -> None:
    until = NOW + timedelta(hours=1)
    await put(
        store,
        "user:acme/alice",
        limits=(budget(MONTH, 90),),
        temporary=(TemporaryLimit(limit=budget(MONTH, 200), until=until),),
        resets=(CounterReset(unit=LimitUnit.SPEND, window=MONTH, reset_generation=2),),
    )
    only = TemporaryLimit(limit=budget(DAY, 5), until=until)
    await put(store, "organization:acme", temporary=(only,))
    reset = usage_pb.CountedGeneration(layer="user_spend_per_month", reset_generation=2)
    used: dict[str, Any] = {"user_id": accounts["alice"], "usage_month": "202612"}
    await use(
        store,
        record(1, **used, charged_nanousd=1_000),
        record(2, **used, charged_nanousd=30, generations=[reset]),
    )

    while_it_runs = await shown(api)
    store.clock = lambda: until
    afterwards = await shown(api)

    assert brief(while_it_runs) == [
        ("organization:acme", "20261201", 5, 0),
        ("user:acme/alice", "202612", 200, 30),
    ]
    assert [each.temporary_until.ToDatetime(tzinfo=UTC) for each in while_it_runs] == [until] * 2
    assert while_it_runs[1].reset_generation == 2
    assert brief(afterwards) == [("user:acme/alice", "202612", 90, 30)]
    assert not afterwards[0].HasField("temporary_until")


async def test_who_is_asked_for_by_name_has_the_budgets_of_its_tier_and_of_the_service_too(
    api: AdminApi, store: Store, accounts: dict[str, str]
) -> None:
    defaults = ServiceDefaults(default_monthly_spend_nanousd=70, daily_budget_nanousd=500)
    await apply_service_settings(store, defaults)
    await put(store, "user:acme/alice", limits=(budget(TOTAL, 900),))

    async def of(subject: str) -> list[tuple[str, int]]:
        return [
            (each.period_id, each.capacity_nanousd) for each in await shown(api, subject=subject)
        ]

    assert await of("user:acme/alice") == [("202612", 70), ("total", 900)]
    assert await of("global") == [("20261130", 500)]
    assert await of("organization:acme") == []

    async with store.transaction("ann", "x") as tx:
        (await tx.users.get("acme/alice")).tier = "free"
        tier = await tx.tiers.get("free")
        tier.user_limits = limits_to_json([budget(DAY, 40), budget(TOTAL, 1)])
        tier.credential_limits = limits_to_json([budget(DAY, 3), budget(MONTH, 4)])
        tier.device_limits = limits_to_json([budget(DAY, 2)])

    assert await of("user:acme/alice") == [("20261201", 40), ("total", 900)]
    assert await of("key:acme/alice/laptop") == [("20261201", 3), ("202612", 4)]
    assert await of("device:device000000") == [("20261201", 2), ("202612", 4)]
    assert brief(await shown(api)) == [("user:acme/alice", "total", 900, 0)]


async def test_pages_of_budgets_go_by_subject(api: AdminApi, store: Store) -> None:
    for number in range(5):
        await api.create_organization(f"o{number}")
        limit = budget(DAY, 1) if number % 2 == 0 else budget(DAY, 0, unlimited=True)
        await put(store, f"organization:o{number}", limits=(limit, budget(TOTAL, 1)))
    seen: list[str] = []
    token = ""

    for _ in range(9):
        page = await api.budgets.ListBudgets(pb.ListBudgetsRequest(page_size=2, page_token=token))
        seen += [each.subject.removeprefix("organization:") for each in page.budgets]
        token = page.next_page_token
        if not token:
            break

    assert seen == ["o0", "o0", "o1", "o2", "o2", "o3", "o4", "o4"]


async def test_a_subject_that_is_not_there_has_no_budgets(api: AdminApi) -> None:
    assert (await refused(shown(api, subject="user:acme/bob"))).code is grpc.StatusCode.NOT_FOUND
    assert (await refused(shown(api, subject="nobody"))).fields == ["subject"]
    assert (await refused(shown(api, page_token="x"))).fields == ["page_token"]


async def tell(store: Store, *events: usage_pb.BudgetEvent) -> None:
    async with store.ledger() as session:
        for each in events:
            await budget_events.record(session, rows_from_budget_events([each]))


async def test_events_are_listed_newest_first_under_the_names_of_now(
    api: AdminApi, store: Store, accounts: dict[str, str]
) -> None:
    def about(kind: int, subject_id: str, after_s: int) -> usage_pb.BudgetEvent:
        return event(counter=counter(subject_kind=kind, subject_id=subject_id), after_s=after_s)

    await put(store, "ip:203.0.113.7", limits=(budget(DAY, 9),))
    await tell(
        store,
        about(3, accounts["alice"], 1),
        about(2, accounts["acme"], 9),
        about(4, accounts["laptop"], 8),
        about(1, "", 7),
        about(3, "gone00000000", 6),
        about(6, address_subject_id("203.0.113.7"), 5),
        about(6, f"free-{address_subject_id('203.0.113.8')}", 4),
        about(7, "chat", 3),
        about(8, "vendor/model:tag", 2),
        event(100, counter=counter(subject_id=accounts["alice"]), after_s=1),
    )

    async def listed(**question: Any) -> list[str]:
        answer = await api.budgets.ListBudgetEvents(pb.ListBudgetEventsRequest(**question))
        return [f"{each.subject} {each.percent}" for each in answer.events]

    assert await listed() == [
        "organization:acme 80",
        "key:acme/alice/laptop 80",
        "global 80",
        "user:gone00000000 80",
        "ip:203.0.113.7 80",
        f"ip:free-{address_subject_id('203.0.113.8')} 80",
        "endpoint:chat 80",
        "model:vendor/model:tag 80",
        "user:acme/alice 100",
        "user:acme/alice 80",
    ]
    for subject in (await listed())[:-2]:
        assert await listed(subject=subject.removesuffix(" 80")) == [subject]
    assert await listed(subject="user:acme/alice") == ["user:acme/alice 100", "user:acme/alice 80"]
    await api.organizations.DeleteOrganization(
        organization_pb.DeleteOrganizationRequest(name="acme", force=True)
    )
    assert await listed(subject=f"user:{accounts['alice']}") == [
        f"user:{accounts['alice']} 100",
        f"user:{accounts['alice']} 80",
    ]
    assert (await refused(listed(subject="user:acme/alice"))).code is grpc.StatusCode.NOT_FOUND


async def test_an_event_is_shown_as_it_was_told(api: AdminApi, store: Store) -> None:
    told = event(100, counter=counter(reset_generation=4))
    await tell(store, told)

    answer = await api.budgets.ListBudgetEvents(pb.ListBudgetEventsRequest())

    (found,) = answer.events
    assert found == pb.BudgetEvent(
        subject="user:aaaaaaaaaaaa",
        counter=told.counter,
        percent=100,
        capacity_nanousd=1_000,
        settled_nanousd=790,
        held_nanousd=10,
        reached_at=told.reached_at,
    )


async def test_pages_of_events_show_each_once_while_new_ones_arrive(
    api: AdminApi, store: Store
) -> None:
    def some(numbers: range) -> list[usage_pb.BudgetEvent]:
        return [event(counter=counter(subject_id=f"u{n:011}"), after_s=n // 3) for n in numbers]

    await tell(store, *some(range(10)))
    seen: list[str] = []
    token = ""

    for turn in range(9):
        page = await api.budgets.ListBudgetEvents(
            pb.ListBudgetEventsRequest(page_size=3, page_token=token)
        )
        seen += [each.subject for each in page.events]
        token = page.next_page_token
        await tell(store, *some(range(100 + turn, 101 + turn)))
        if not token:
            break

    assert seen == [f"user:u{n:011}" for n in range(9, -1, -1)]


async def test_a_page_token_of_others_is_refused(api: AdminApi, store: Store) -> None:
    budgets = await api.budgets.ListBudgets(pb.ListBudgetsRequest())
    assert budgets.next_page_token == ""
    for token in ("x", "WyIiLCJhIl0="):
        question = pb.ListBudgetEventsRequest(page_token=token)
        refusal = await refused(api.budgets.ListBudgetEvents(question))
        assert refusal.fields == ["page_token"]


@pytest.mark.parametrize(
    "event_id",
    ["9" * 40, "0" * 20 + "9" * 20, "9" * 5_000, str(2**63), "0", "-1", "1.5", "\N{DIGIT ONE}\0"],
)
async def test_a_page_token_with_a_number_that_no_event_has_is_refused(
    api: AdminApi, event_id: str
) -> None:
    question = pb.ListBudgetEventsRequest()
    last = SimpleNamespace(reached_at=NOW.isoformat(), id=event_id)
    question.page_token = Page(1, (), page_of(question).list_digest).next_token(
        [last, last], "reached_at", "id"
    )

    refusal = await refused(api.budgets.ListBudgetEvents(question))

    assert (refusal.code, refusal.fields) == (grpc.StatusCode.INVALID_ARGUMENT, ["page_token"])


async def test_addresses_of_events_are_found_among_many_and_only_read_where_they_can_be(
    api: AdminApi, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subject_names, "_ADDRESSES_AT_ONCE", 2)
    addresses = [f"203.0.113.{n}" for n in range(7)]
    for address in addresses:
        await put(store, f"ip:{address}", limits=(budget(DAY, 9),))
    statements: list[str] = []

    def note(_connection: Any, _cursor: Any, statement: str, *_rest: Any) -> None:
        statements.append(statement)

    sqlalchemy_event.listen(store.engine.sync_engine, "before_cursor_execute", note)

    async def names(*subject_ids: str) -> list[str]:
        statements.clear()
        async with store.reading() as session:
            subjects = [(6, subject_id) for subject_id in subject_ids]
            found = await subject_names.names_of(Repositories(session), subjects)
        return [found[subject] for subject in subjects]

    digests = [address_subject_id(address) for address in addresses]
    assert await names(*digests) == [f"ip:{address}" for address in addresses]
    assert await names(digests[3], "00ff00ff00ff00ff") == [
        f"ip:{addresses[3]}",
        "ip:00ff00ff00ff00ff",
    ]
    assert any("subject_limits" in each for each in statements)
    assert await names(f"free-{digests[0]}") == [f"ip:free-{digests[0]}"]
    assert statements == []
