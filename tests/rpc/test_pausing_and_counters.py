"""The pause of the whole service, and work on the counters that data planes do."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import grpc
import pytest
from grpc import aio
from sqlmodel.ext.asyncio.session import AsyncSession
from tollkeeper.admin.v1 import administrator_service_pb2 as administrator_pb
from tollkeeper.admin.v1 import audit_service_pb2 as audit_pb
from tollkeeper.admin.v1 import operations_service_pb2 as pb
from tollkeeper.admin.v1 import operations_service_pb2_grpc as pb_grpc
from tollkeeper.admin.v1 import user_service_pb2 as user_pb
from tollkeeper.common.v1 import limits_pb2
from tollkeeper.config.v1 import config_service_pb2, resources_pb2

from controlplane.domain.errors import DeadlineError, DomainError, LimitsUnavailableError
from controlplane.rpc.admin_services import interceptors
from controlplane.rpc.operations import COUNTER_TASK_DEADLINE_S
from controlplane.rpc.usage_records import row_from_record
from controlplane.snapshots.publisher import Publisher
from controlplane.store import ledger
from controlplane.store.database import Store
from controlplane.store.usage_totals import TOTALS
from tests.ledger.test_ledger import record
from tests.ledger.test_usage_totals import kept_sums, ledger_sums
from tests.rpc.admin_api import NODE_TOKEN, OWNER_TOKEN, AdminApi, listening, refused
from tests.rpc.test_operations import Clock, fleet, servicer, status

VERIFY, REPAIR, RESET_CLOCK = (
    config_service_pb2.COUNTER_TASK_KIND_VERIFY,
    config_service_pb2.COUNTER_TASK_KIND_REPAIR,
    config_service_pb2.COUNTER_TASK_KIND_RESET_CLOCK,
)


@dataclass
class ScriptedDesk:
    """Stands for the data planes, which are far away: notes what it is asked for and answers from a script."""

    report: config_service_pb2.CounterReport = field(
        default_factory=config_service_pb2.CounterReport
    )
    error: DomainError | None = None
    asked: list[tuple[int, float]] = field(default_factory=list)

    async def run_counter_task(
        self, kind: config_service_pb2.CounterTaskKind.ValueType, deadline_s: float
    ) -> tuple[str, config_service_pb2.CounterReport]:
        self.asked.append((kind, deadline_s))
        if self.error is not None:
            raise self.error
        return "node-7", self.report


@pytest.fixture
def desk() -> ScriptedDesk:
    return ScriptedDesk()


@pytest.fixture
async def operations(store: Store, api: AdminApi, desk: ScriptedDesk) -> AsyncIterator[str]:
    """The address of a server with the operations service; `api` makes the owner who asks."""
    server = aio.server(interceptors=interceptors(store, node_token=NODE_TOKEN))
    own = servicer(store, Publisher(store, fleet()), Clock(), desk)
    pb_grpc.add_OperationsServiceServicer_to_server(own, server)
    async with listening(server) as address:
        yield address


@pytest.fixture
async def stub(operations: str) -> AsyncIterator["pb_grpc.OperationsServiceAsyncStub"]:
    caller = AdminApi(operations, OWNER_TOKEN)
    yield pb_grpc.OperationsServiceStub(caller.channel)
    await caller.channel.close()


async def published(store: Store) -> bool:
    """Whether what a data plane gets says that the service is paused."""
    own = fleet()
    await Publisher(store, own).load()
    watcher = own.attach(config_service_pb2.Hello(node_id="node-1", boot_id="b"))
    while (said := watcher.next_message(own.now_s())) is not None:
        if not isinstance(said, bytes):
            continue
        message = config_service_pb2.StreamConfigResponse.FromString(said)
        for each in message.transfer_chunk.resources:
            if each.kind == resources_pb2.RESOURCE_KIND_SERVICE:
                return resources_pb2.Service.FromString(each.payload).paused
    raise AssertionError("the service's settings do not travel")


async def entries(api: AdminApi, rpc: str) -> list[audit_pb.AuditEntry]:
    answer = await api.audit.ListAuditEntries(audit_pb.ListAuditEntriesRequest(rpc=rpc))
    return list(answer.entries)


async def test_a_paused_service_is_paused_for_every_data_plane_until_it_is_resumed(
    operations: str,
    stub: "pb_grpc.OperationsServiceAsyncStub",
    api: AdminApi,
    store: Store,
) -> None:
    paused = await stub.PauseService(pb.PauseServiceRequest())
    assert (paused.paused, (await status(operations)).paused) == (True, True)
    assert await published(store)

    again = await stub.PauseService(pb.PauseServiceRequest())
    resumed = await stub.ResumeService(pb.ResumeServiceRequest())

    assert again == paused
    assert (resumed.paused, resumed.revision) == (False, paused.revision + 1)
    assert not (await status(operations)).paused
    assert not await published(store)
    (entry,) = await entries(api, "PauseService")
    assert (entry.actor, entry.revision) == ("bootstrap", paused.revision)
    assert len(await entries(api, "ResumeService")) == 1


async def test_a_repeated_pause_has_the_first_answer_and_a_dry_run_keeps_nothing(
    operations: str, stub: "pb_grpc.OperationsServiceAsyncStub"
) -> None:
    dry = await stub.PauseService(pb.PauseServiceRequest(validate_only=True))
    assert (dry.paused, (await status(operations)).paused) == (True, False)
    first = await stub.PauseService(pb.PauseServiceRequest(request_id="once"))
    await stub.ResumeService(pb.ResumeServiceRequest())

    assert await stub.PauseService(pb.PauseServiceRequest(request_id="once")) == first
    assert not (await status(operations)).paused


async def test_differences_are_shown_under_the_names_of_their_subjects(
    stub: "pb_grpc.OperationsServiceAsyncStub", api: AdminApi, desk: ScriptedDesk
) -> None:
    acme = await api.create_organization("acme")
    alice = await api.users.CreateUser(
        user_pb.CreateUserRequest(user=user_pb.User(name="acme/alice"))
    )
    subjects = [(2, acme.id), (3, alice.id), (3, "gone00000000"), (1, ""), (8, "gpt-4o"), (99, "x")]
    differences = [
        limits_pb2.CounterDifference(
            counter=limits_pb2.Counter(subject_kind=kind, subject_id=subject_id),  # type: ignore[arg-type]  # also of a newer node
            settled=9,
            ledger=7,
        )
        for kind, subject_id in subjects
    ]
    desk.report = config_service_pb2.CounterReport(
        compared=5_000, differing=1_006, differences=[*differences, *differences[:1] * 1_000]
    )

    found = await stub.VerifyCounters(pb.VerifyCountersRequest())

    assert (found.node_id, found.compared, found.differing) == ("node-7", 5_000, 1_006)
    assert len(found.differences) == 1_000
    assert [each.subject for each in found.differences[:6]] == [
        "organization:acme",
        "user:acme/alice",
        "user:gone00000000",
        "global",
        "model:gpt-4o",
        "99:x",
    ]
    assert found.differences[1].difference == differences[1]


async def test_what_is_asked_for_is_in_the_audit_log_and_takes_no_revision(
    stub: "pb_grpc.OperationsServiceAsyncStub", api: AdminApi, desk: ScriptedDesk
) -> None:
    standing = await api.create_organization("acme")

    await stub.VerifyCounters(pb.VerifyCountersRequest(repair=True))
    reset = await stub.ResetLimiterClock(pb.ResetLimiterClockRequest())

    assert reset.node_id == "node-7"
    assert desk.asked == [(kind, COUNTER_TASK_DEADLINE_S) for kind in (REPAIR, RESET_CLOCK)]
    (repaired,) = await entries(api, "VerifyCounters")
    (reset_entry,) = await entries(api, "ResetLimiterClock")
    assert dict(repaired.request) == {"repair": True}
    assert {each.revision for each in (repaired, reset_entry)} == {standing.revision}
    assert (reset_entry.actor, reset_entry.resource) == ("bootstrap", "counters")


@pytest.mark.parametrize(
    ("error", "code", "reason"),
    [
        (LimitsUnavailableError("nobody"), grpc.StatusCode.UNAVAILABLE, "LIMITS_UNAVAILABLE"),
        (DeadlineError("late"), grpc.StatusCode.DEADLINE_EXCEEDED, "UPSTREAM_TIMEOUT"),
    ],
)
async def test_a_task_that_nobody_did_is_refused_and_was_audited(
    stub: "pb_grpc.OperationsServiceAsyncStub",
    api: AdminApi,
    desk: ScriptedDesk,
    error: DomainError,
    code: grpc.StatusCode,
    reason: str,
) -> None:
    desk.error = error

    refusal = await refused(stub.VerifyCounters(pb.VerifyCountersRequest(repair=True)))

    assert (refusal.code, refusal.reason) == (code, reason)
    assert len(await entries(api, "VerifyCounters")) == 1


async def test_a_data_plane_says_why_it_could_not_do_it(
    stub: "pb_grpc.OperationsServiceAsyncStub", desk: ScriptedDesk
) -> None:
    desk.report = config_service_pb2.CounterReport(problem="Redis does not answer")

    refusal = await refused(stub.ResetLimiterClock(pb.ResetLimiterClockRequest()))

    assert refusal.code is grpc.StatusCode.UNAVAILABLE
    assert refusal.message == "data plane node-7: Redis does not answer"


async def administrator(
    api: AdminApi, address: str, role: administrator_pb.Role.ValueType
) -> AdminApi:
    """A client of somebody new who has a role."""
    made = await api.administrators.CreateAdministrator(
        administrator_pb.CreateAdministratorRequest(
            administrator=administrator_pb.Administrator(name="bea", role=role)
        )
    )
    return AdminApi(address, made.token)


@pytest.mark.parametrize("role", [administrator_pb.ROLE_AUDITOR, administrator_pb.ROLE_BILLING])
async def test_who_may_only_read_compares_counters_and_changes_nothing(
    operations: str, api: AdminApi, desk: ScriptedDesk, role: administrator_pb.Role.ValueType
) -> None:
    bea = await administrator(api, operations, role)
    own = pb_grpc.OperationsServiceStub(bea.channel)

    assert (await own.VerifyCounters(pb.VerifyCountersRequest())).node_id == "node-7"

    for call in (
        own.VerifyCounters(pb.VerifyCountersRequest(repair=True)),
        own.RecountUsage(pb.RecountUsageRequest()),
        own.PauseService(pb.PauseServiceRequest()),
        own.ResetLimiterClock(pb.ResetLimiterClockRequest()),
    ):
        assert (await refused(call)).reason == "PERMISSION_DENIED"
    assert [kind for kind, _ in desk.asked] == [VERIFY]
    # Reading leaves no trace, and neither does what was refused.
    assert await entries(api, "VerifyCounters") == []
    await bea.channel.close()


async def test_who_may_write_operations_compares_and_repairs(
    operations: str, api: AdminApi, desk: ScriptedDesk
) -> None:
    bea = await administrator(api, operations, administrator_pb.ROLE_OPERATOR)
    own = pb_grpc.OperationsServiceStub(bea.channel)

    await own.VerifyCounters(pb.VerifyCountersRequest())
    await own.VerifyCounters(pb.VerifyCountersRequest(repair=True))

    assert [kind for kind, _ in desk.asked] == [VERIFY, REPAIR]
    (entry,) = await entries(api, "VerifyCounters")
    assert entry.actor == "bea"
    await bea.channel.close()


async def test_the_sums_of_the_ledger_are_recounted_and_the_audit_log_has_it(
    stub: "pb_grpc.OperationsServiceAsyncStub", api: AdminApi, store: Store, desk: ScriptedDesk
) -> None:
    standing = await api.create_organization("acme")
    async with store.ledger() as session:
        await ledger.record(session, [row_from_record(record(n, user_id="u")) for n in range(3)])
        await (await session.connection()).execute(TOTALS.delete())

    done = await stub.RecountUsage(pb.RecountUsageRequest())

    assert done.requests == 3
    assert await kept_sums(store) == await ledger_sums(store) != {}
    assert desk.asked == []
    (entry,) = await entries(api, "RecountUsage")
    assert (entry.actor, entry.resource, entry.revision) == (
        "bootstrap",
        "usage",
        standing.revision,
    )


async def test_a_ledger_that_takes_too_long_is_not_recounted(
    stub: "pb_grpc.OperationsServiceAsyncStub",
    api: AdminApi,
    store: Store,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def endless(session: AsyncSession) -> int:
        await (await session.connection()).execute(TOTALS.delete())
        await asyncio.Event().wait()
        raise AssertionError("unreachable")

    async with store.ledger() as session:
        await ledger.record(session, [row_from_record(record(1))])
    monkeypatch.setattr("controlplane.rpc.operations.recount", endless)
    monkeypatch.setattr("controlplane.rpc.operations.RECOUNT_DEADLINE_S", 0.2)

    refusal = await refused(stub.RecountUsage(pb.RecountUsageRequest()))

    assert refusal.code is grpc.StatusCode.DEADLINE_EXCEEDED
    assert await kept_sums(store) == await ledger_sums(store) != {}
    assert await entries(api, "RecountUsage") == []
