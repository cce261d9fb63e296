"""Registration with a control plane: sent once, and every end of it is a refusal that helps."""

import asyncio
import socket
import time
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.rpc.error_details_pb2 import (  # type: ignore[import-untyped]  # has none
    BadRequest,
    ErrorInfo,
    RetryInfo,
)
from google.rpc.status_pb2 import Status  # type: ignore[import-untyped]  # has none
from structlog.testing import capture_logs
from tollkeeper.common.v1 import devices_pb2
from tollkeeper.enrollment.v1 import device_enrollment_service_pb2 as pb

from dataplane.control.enrollment import MAX_AT_A_TIME, MAX_WAITING, Enrollment, Registered
from dataplane.domain.principals import DeviceStatus
from dataplane.domain.refusals import Reason, Refusal
from dataplane.domain.registration import Registration
from tests.control.enrollment_server import Context, EnrollmentServer, fails, until_waiting

_TOKEN = "node-token-that-is-long-enough-for-anybody"
ADA = Registration("Ada's laptop", "macos", "1.4.2", "2001:db8:0:1::9", "Application/1.0")
Code = grpc.StatusCode


@pytest.fixture
async def server() -> AsyncIterator[EnrollmentServer]:
    server = EnrollmentServer()
    await server.start()
    yield server
    await server.die()


@pytest.fixture
async def other() -> AsyncIterator[EnrollmentServer]:
    server = EnrollmentServer()
    await server.start()
    yield server
    await server.die()


@pytest.fixture
async def enrollment(server: EnrollmentServer) -> AsyncIterator[Enrollment]:
    enrollment = Enrollment([server.address], _TOKEN, "this-node")
    yield enrollment
    await enrollment.aclose()


def closed_port() -> str:
    """Return an address where nobody listens."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{sock.getsockname()[1]}"


async def refusal_of(enrollment: Enrollment) -> Refusal:
    with pytest.raises(Refusal) as raised:
        await enrollment.register(ADA)
    return raised.value


async def test_a_registration_says_all_that_is_known_and_returns_the_credential(
    server: EnrollmentServer, enrollment: Enrollment
) -> None:
    registered = await enrollment.register(ADA)

    assert registered == Registered("d1", "tks_1", DeviceStatus.PENDING_APPROVAL)
    assert "tks_1" not in repr(registered)
    assert server.requests == [
        pb.RegisterDeviceRequest(
            node_id="this-node",
            device_name="Ada's laptop",
            platform="macos",
            version="1.4.2",
            address="2001:db8:0:1::9",
            address_prefix="2001:db8:0:1::/64",
            user_agent="Application/1.0",
        )
    ]
    assert server.tokens == {f"Bearer {_TOKEN}"}


@pytest.mark.parametrize("status", devices_pb2.DeviceStatus.values())
async def test_every_status_has_its_word(
    server: EnrollmentServer, enrollment: Enrollment, status: Any
) -> None:
    server.status = status
    name = devices_pb2.DeviceStatus.Name(status).removeprefix("DEVICE_STATUS_").lower()

    registered = await enrollment.register(ADA)

    assert registered.status == (name if status else "unknown")


async def test_a_status_of_a_newer_control_plane_is_unknown(
    server: EnrollmentServer, enrollment: Enrollment
) -> None:
    server.status = 99  # type: ignore[assignment]  # a newer peer's

    assert (await enrollment.register(ADA)).status is DeviceStatus.UNKNOWN


@pytest.mark.parametrize(
    "code",
    [
        Code.UNAVAILABLE,
        Code.UNAUTHENTICATED,
        Code.PERMISSION_DENIED,
        Code.UNIMPLEMENTED,
        Code.INTERNAL,
        Code.UNKNOWN,
        Code.FAILED_PRECONDITION,
        Code.ABORTED,
        Code.CANCELLED,
    ],
)
async def test_a_control_plane_that_does_not_register_is_unavailable_and_asked_once(
    server: EnrollmentServer, enrollment: Enrollment, code: grpc.StatusCode
) -> None:
    server.act = fails(code, text="a secret of the control plane")

    with capture_logs() as logs:
        refusal = await refusal_of(enrollment)

    assert refusal.reason is Reason.CONTROL_PLANE_UNAVAILABLE
    assert refusal.retry_after_seconds == 5
    assert "secret" not in refusal.message
    assert len(server.requests) == 1
    assert [entry["event"] for entry in logs] == ["registration_failed"]


@pytest.mark.parametrize(
    ("delay", "seconds"),
    [
        (Duration(seconds=90), 90),
        (Duration(seconds=90, nanos=1), 91),
        (Duration(), 1),
        (Duration(seconds=-5), 1),
        (Duration(seconds=10**9), 86_400),
        (None, 60),
    ],
)
async def test_when_too_many_devices_wait_the_caller_is_told_for_how_long(
    server: EnrollmentServer, enrollment: Enrollment, delay: Duration | None, seconds: int
) -> None:
    details = [ErrorInfo(reason="RATE_LIMIT_EXCEEDED")]
    if delay is not None:
        details.append(RetryInfo(retry_delay=delay))
    server.act = fails(Code.RESOURCE_EXHAUSTED, *details)

    refusal = await refusal_of(enrollment)

    assert refusal.reason is Reason.RATE_LIMIT_EXCEEDED
    assert refusal.details == {"layer": "pending_devices"}
    assert refusal.retry_after_seconds == seconds


@pytest.mark.parametrize(
    ("field", "param"),
    [("device_name", "deviceName"), ("platform", "platform"), ("node_id", None), ("", None)],
)
async def test_what_the_control_plane_finds_wrong_is_named_as_the_caller_wrote_it(
    server: EnrollmentServer, enrollment: Enrollment, field: str, param: str | None
) -> None:
    violations = [BadRequest.FieldViolation(field=field, description="no")] if field else []
    server.act = fails(Code.INVALID_ARGUMENT, BadRequest(field_violations=violations))

    refusal = await refusal_of(enrollment)

    assert (refusal.reason, refusal.param) == (Reason.INVALID_REQUEST, param)


@pytest.mark.parametrize(
    "details",
    [b"\xff\xff", Status(code=Code.NOT_FOUND.value[0], message="no").SerializeToString()],
    ids=["garbage", "another status"],
)
async def test_details_that_make_no_sense_are_passed_over(
    server: EnrollmentServer, enrollment: Enrollment, details: bytes
) -> None:
    async def act(_request: pb.RegisterDeviceRequest, context: Context) -> None:
        context.set_trailing_metadata((("grpc-status-details-bin", details),))
        await context.abort(Code.RESOURCE_EXHAUSTED, "no")

    server.act = act

    assert (await refusal_of(enrollment)).retry_after_seconds == 60


async def test_a_control_plane_that_stays_silent_is_waited_for_until_the_deadline(
    server: EnrollmentServer,
) -> None:
    async def silent(_request: pb.RegisterDeviceRequest, _context: Context) -> None:
        await asyncio.Event().wait()

    server.act = silent
    enrollment = Enrollment([server.address], _TOKEN, "this-node", deadline_seconds=0.3)
    started = time.monotonic()

    refusal = await refusal_of(enrollment)

    assert 0.25 < time.monotonic() - started < 2
    assert refusal.reason is Reason.CONTROL_PLANE_UNAVAILABLE
    assert len(server.requests) == 1
    await enrollment.aclose()


async def test_where_nobody_listens_another_control_plane_is_asked(
    server: EnrollmentServer,
) -> None:
    enrollment = Enrollment([closed_port(), server.address], _TOKEN, "this-node")

    assert (await enrollment.register(ADA)).device_id == "d1"
    started = time.monotonic()
    assert (await enrollment.register(ADA)).device_id == "d2"

    # It begins where the last one ended, instead of waiting for nobody again.
    assert time.monotonic() - started < 1
    await enrollment.aclose()


async def test_after_a_control_plane_that_could_not_the_next_is_asked(
    server: EnrollmentServer, other: EnrollmentServer
) -> None:
    server.act = fails(Code.UNAVAILABLE)
    enrollment = Enrollment([server.address, other.address], _TOKEN, "this-node")

    await refusal_of(enrollment)

    assert (await enrollment.register(ADA)).device_id == "d1"
    assert (len(server.requests), len(other.requests)) == (1, 1)
    await enrollment.aclose()


async def test_where_nobody_listens_anywhere_the_control_plane_is_unavailable() -> None:
    enrollment = Enrollment([closed_port(), closed_port()], _TOKEN, "this-node")
    started = time.monotonic()

    refusal = await refusal_of(enrollment)

    assert refusal.reason is Reason.CONTROL_PLANE_UNAVAILABLE
    assert time.monotonic() - started < 1.4
    await enrollment.aclose()


async def test_a_control_plane_that_accepts_and_says_nothing_is_left_for_another(
    server: EnrollmentServer,
) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        enrollment = Enrollment([address, server.address], _TOKEN, "this-node")

        assert (await enrollment.register(ADA)).device_id == "d1"

        await enrollment.aclose()


async def test_a_registration_that_may_have_arrived_is_sent_to_nobody_else(
    server: EnrollmentServer, other: EnrollmentServer
) -> None:
    async def dies(_request: pb.RegisterDeviceRequest, _context: Context) -> None:
        await asyncio.Event().wait()

    server.act = dies
    enrollment = Enrollment([server.address, other.address], _TOKEN, "this-node")
    registration = asyncio.create_task(enrollment.register(ADA))
    await until_waiting(server, 1)
    await server.die()

    with pytest.raises(Refusal) as raised:
        await registration

    assert raised.value.reason is Reason.CONTROL_PLANE_UNAVAILABLE
    assert other.requests == []
    # The next one is not held up by it.
    assert (await enrollment.register(ADA)).device_id == "d1"
    assert len(other.requests) == 1
    await enrollment.aclose()


async def test_a_control_plane_that_is_back_registers_again(
    server: EnrollmentServer, enrollment: Enrollment
) -> None:
    await enrollment.register(ADA)
    await server.die()
    await refusal_of(enrollment)
    await server.start()

    async with asyncio.timeout(10):
        while True:
            try:
                registered = await enrollment.register(ADA)
                break
            except Refusal:
                continue

    assert registered.device_id == "d2"


async def test_only_so_many_are_under_way_the_rest_waits_and_too_many_are_told_at_once(
    server: EnrollmentServer, enrollment: Enrollment
) -> None:
    go_on = asyncio.Event()

    async def later(_request: pb.RegisterDeviceRequest, _context: Context) -> None:
        await go_on.wait()

    server.act = later
    all_there_is_room_for = MAX_AT_A_TIME + MAX_WAITING
    tasks = [asyncio.create_task(enrollment.register(ADA)) for _ in range(all_there_is_room_for)]
    await until_waiting(server, MAX_AT_A_TIME)

    refusal = await refusal_of(enrollment)

    assert (refusal.reason, refusal.retry_after_seconds) == (Reason.OVERLOADED, 1)
    go_on.set()
    registered = {each.device_id for each in await asyncio.gather(*tasks)}
    assert len(registered) == all_there_is_room_for
    assert server.most_under_way == MAX_AT_A_TIME
    await enrollment.register(ADA)


async def test_whoever_waits_for_its_turn_beyond_the_deadline_is_told(
    server: EnrollmentServer,
) -> None:
    async def silent(_request: pb.RegisterDeviceRequest, _context: Context) -> None:
        await asyncio.Event().wait()

    server.act = silent
    enrollment = Enrollment([server.address], "t" * 32, "node-1", deadline_seconds=30)
    tasks = [asyncio.create_task(enrollment.register(ADA)) for _ in range(MAX_AT_A_TIME)]
    await until_waiting(server, MAX_AT_A_TIME)
    # Of the one alone: with that of the others a place would come free at the same instant.
    enrollment._deadline_seconds = 0.05

    with pytest.raises(Refusal) as refused:
        await enrollment.register(ADA)

    assert refused.value.reason is Reason.OVERLOADED
    assert len(server.requests) == MAX_AT_A_TIME
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    await enrollment.aclose()


async def test_a_caller_that_leaves_makes_room(
    server: EnrollmentServer, enrollment: Enrollment
) -> None:
    async def silent(_request: pb.RegisterDeviceRequest, _context: Context) -> None:
        await asyncio.Event().wait()

    server.act = silent
    tasks = [asyncio.create_task(enrollment.register(ADA)) for _ in range(MAX_AT_A_TIME)]
    await until_waiting(server, MAX_AT_A_TIME)
    for task in tasks:
        task.cancel()
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert {type(outcome) for outcome in outcomes} == {asyncio.CancelledError}

    server.act = fails(Code.INTERNAL)

    assert (await refusal_of(enrollment)).reason is Reason.CONTROL_PLANE_UNAVAILABLE


async def test_closing_refuses_what_is_under_way_and_what_comes_after(
    server: EnrollmentServer, enrollment: Enrollment
) -> None:
    async def silent(_request: pb.RegisterDeviceRequest, _context: Context) -> None:
        await asyncio.Event().wait()

    server.act = silent
    registration = asyncio.create_task(enrollment.register(ADA))
    await until_waiting(server, 1)

    await enrollment.aclose()

    with pytest.raises(Refusal) as raised:
        await registration
    assert raised.value.reason is Reason.CONTROL_PLANE_UNAVAILABLE
    assert (await refusal_of(enrollment)).reason is Reason.CONTROL_PLANE_UNAVAILABLE
    assert len(server.requests) == 1


async def test_closing_refuses_what_still_connects() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        enrollment = Enrollment([address], _TOKEN, "this-node")
        registration = asyncio.create_task(enrollment.register(ADA))
        while not enrollment._channels:
            await asyncio.sleep(0)
        await enrollment.aclose()
        with pytest.raises(Refusal):
            await registration


async def test_what_is_closed_opens_nothing(
    server: EnrollmentServer, enrollment: Enrollment
) -> None:
    await enrollment.aclose()

    assert (await refusal_of(enrollment)).reason is Reason.CONTROL_PLANE_UNAVAILABLE
    assert not enrollment._channels
    assert server.requests == []


@pytest.mark.parametrize("addresses", [[], ["10.0.0.1:50051"], ["127.0.0.1:1", "controlplane:1"]])
def test_a_token_does_not_leave_this_machine_in_clear(addresses: list[str]) -> None:
    with pytest.raises(ValueError, match=r"loopback|needs"):
        Enrollment(addresses, _TOKEN, "node")
