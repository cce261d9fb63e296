"""A data plane becomes a node and stays one: over restarts, renewals, lost tokens and unusable files."""

import asyncio
import base64
import contextlib
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
import structlog
from tollkeeper.usage.v1 import usage_service_pb2 as usage_pb
from tollkeeper.usage.v1 import usage_service_pb2_grpc as usage_grpc

from controlplane.pki.certificates import Authority, NodeName
from dataplane.control.channels import ChannelCache, TlsChannels
from dataplane.control.identity import Identity, IdentityError, IdentityFile, KeyRequest
from dataplane.control.node_enrollment import Renewal, join
from dataplane.membership import Membership, membership
from dataplane.settings import Settings, SettingsError, read_settings
from tests.distribution.node import Node, eventually
from tests.identity.control_planes import ControlPlane, clock_ms, node_channel, running
from tests.rpc.admin_api import refused

NODE_KEY = base64.b64encode(bytes(range(32))).decode()


def settings_of(node_dir: Path, at: ControlPlane, /, **given: Any) -> Settings:
    """Return what a data plane reads from this environment."""
    environment = {
        "DATA_DIR": node_dir,
        "REDIS_URL": "redis://127.0.0.1:1",
        "CONTROL_PLANE": at.node_address,
        **{name.upper(): value for name, value in given.items()},
    }
    node_dir.mkdir(exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(f"TOLLKEEPER_{name}", str(value))
        return read_settings()


async def follows(member: Membership, control_plane: ControlPlane) -> None:
    """Open a stream as a member does."""
    async with member.channels.to(control_plane.node_address) as channel:
        await Node(channel).hello(member.node_id)


@pytest.fixture
def node_dir(tmp_path: Path) -> Path:
    return tmp_path / "node"


@pytest.mark.parametrize("node_key", ["", NODE_KEY], ids=["in clear", "encrypted"])
async def test_a_node_that_joined_starts_again_without_a_token(
    control_plane: ControlPlane, node_dir: Path, node_key: str
) -> None:
    key = {"node_key": node_key} if node_key else {}
    token = await control_plane.token_text("eu-1")
    settings = settings_of(node_dir, control_plane, join_token=token, **key)
    async with membership(settings, clock_ms) as member:
        assert (member.node_id, member.token) == ("eu-1", "")
        await follows(member, control_plane)

    for given in ({}, {"join_token": token}):
        again = settings_of(node_dir, control_plane, **key, **given)
        async with membership(again, clock_ms) as member:
            assert member.node_id == "eu-1"
            await follows(member, control_plane)

    kept = (node_dir / "identity").read_bytes()
    assert (node_dir / "identity").stat().st_mode & 0o777 == 0o600
    assert (b"PRIVATE KEY" in kept) == (not node_key)
    assert not (node_dir / "identity.joining").exists()


async def test_a_node_that_died_while_it_joined_gets_the_same_answer(
    control_plane: ControlPlane, node_dir: Path
) -> None:
    token = await control_plane.token_text("eu-1")
    settings = settings_of(node_dir, control_plane, join_token=token)
    requests: list[KeyRequest] = []
    real_write = IdentityFile.write
    with pytest.MonkeyPatch.context() as patch:

        def dies(file: IdentityFile, identity: Identity) -> None:
            request = file.read_request()
            assert request is not None
            requests.append(request)
            raise OSError("the machine is gone")

        patch.setattr(IdentityFile, "write", dies)
        with pytest.raises(OSError, match="gone"):
            async with membership(settings, clock_ms):
                pass
    assert IdentityFile.write is real_write

    async with membership(settings, clock_ms) as member:
        await follows(member, control_plane)

    kept = IdentityFile(node_dir, None).read()
    assert kept is not None
    assert [kept.key_pem] == [each.key_pem for each in requests]


async def test_a_new_token_has_a_node_join_anew(
    control_plane: ControlPlane, node_dir: Path
) -> None:
    async def start() -> Identity:
        token = await control_plane.token_text("eu-1")
        settings = settings_of(node_dir, control_plane, join_token=token)
        async with membership(settings, clock_ms) as member:
            await follows(member, control_plane)
        found = IdentityFile(node_dir, None).read()
        assert found is not None
        return found

    first = await start()
    await control_plane.ban("eu-1")
    await control_plane.unban("eu-1")
    second = await start()

    assert first.key_pem != second.key_pem


async def test_a_token_that_is_not_taken_does_not_cost_a_node_what_it_has(
    control_plane: ControlPlane, node_dir: Path
) -> None:
    token = await control_plane.token_text("eu-1")
    async with membership(settings_of(node_dir, control_plane, join_token=token), clock_ms):
        pass
    other = await control_plane.token_text("somebody-else")
    settings = settings_of(node_dir, control_plane, join_token=other, node_id="eu-1")

    with structlog.testing.capture_logs() as logged:
        async with membership(settings, clock_ms) as member:
            await follows(member, control_plane)

    assert [each["event"] for each in logged if each["log_level"] == "error"] == [
        "join_token_not_used"
    ]


async def test_a_node_that_cannot_join_says_why_in_one_line(
    control_plane: ControlPlane, node_dir: Path
) -> None:
    token = await control_plane.token_text("eu-1")
    settings = settings_of(node_dir, control_plane, join_token=token, node_id="eu-2")

    with pytest.raises(ValueError, match="does not let eu-2 join") as refused:
        async with membership(settings, clock_ms):
            pass

    assert "\n" not in str(refused.value)
    assert token not in str(refused.value)


async def test_another_node_key_does_not_open_what_was_kept(
    control_plane: ControlPlane, node_dir: Path
) -> None:
    token = await control_plane.token_text("eu-1")
    settings = settings_of(node_dir, control_plane, join_token=token, node_key=NODE_KEY)
    async with membership(settings, clock_ms):
        pass
    other = base64.b64encode(bytes(32)).decode()

    for key, says in ((other, "does not open with this"), ("", "is encrypted")):
        given = {"node_key": key} if key else {}
        with pytest.raises(ValueError, match=says):
            async with membership(settings_of(node_dir, control_plane, **given), clock_ms):
                pass


@pytest.mark.parametrize("content", [b"", b"TKIDENT1\x00", b"TKIDENT1\x00\x81\xa1x\x01", b"x" * 99])
async def test_a_damaged_identity_is_refused_with_its_name(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "identity").write_bytes(content)

    with pytest.raises(IdentityError, match="identity"):
        IdentityFile(tmp_path, None).read()


async def test_the_id_of_a_node_that_joined_does_not_change(
    control_plane: ControlPlane, node_dir: Path
) -> None:
    token = await control_plane.token_text("eu-1")
    async with membership(settings_of(node_dir, control_plane, join_token=token), clock_ms):
        pass

    settings = settings_of(node_dir, control_plane, node_id="eu-2")
    with pytest.raises(ValueError, match="joined as eu-1"):
        async with membership(settings, clock_ms):
            pass


async def test_without_a_token_and_without_an_identity_nothing_starts(
    control_plane: ControlPlane, node_dir: Path
) -> None:
    with pytest.raises(SettingsError, match="TOLLKEEPER_JOIN_TOKEN: it is not set"):
        settings_of(node_dir, control_plane)


async def test_a_damaged_token_is_refused_without_being_shown(
    control_plane: ControlPlane, node_dir: Path
) -> None:
    token = await control_plane.token_text()

    with pytest.raises(SettingsError, match="damaged") as refused:
        settings_of(node_dir, control_plane, join_token=token[: len(token) // 2])

    assert token[10:40] not in str(refused.value)


async def test_a_shared_token_goes_to_no_address_off_loopback(
    control_plane: ControlPlane, node_dir: Path
) -> None:
    settings = settings_of(
        node_dir, control_plane, join_token="j" * 32, control_plane="control.example.com:50051"
    )

    with pytest.raises(ValueError, match="only loopback is allowed without TLS"):
        async with membership(settings, clock_ms):
            pass


@pytest.fixture
async def hasty(data_dir: Path) -> AsyncIterator[ControlPlane]:
    """A control plane whose certificates for nodes hold three seconds."""
    async with running(data_dir, node_lifetime=timedelta(seconds=3)) as started:
        yield started


async def test_a_certificate_is_renewed_at_half_its_life_under_open_streams(
    hasty: ControlPlane, node_dir: Path
) -> None:
    token = await hasty.token_text("eu-1")
    settings = settings_of(node_dir, hasty, join_token=token)
    async with membership(settings, clock_ms) as member:
        channels = member.channels
        assert isinstance(channels, TlsChannels)
        first, cache = channels.identity, ChannelCache(channels)
        async with channels.to(hasty.node_address) as channel:
            node = Node(channel)
            await node.hello("eu-1")
            await node.follow()
            before = cache.to(hasty.node_address)

            await eventually(lambda: channels.generation > 0, 3)

            renewed, share = channels.identity, 0.0
            share = (renewed.issued_at_ms - first.issued_at_ms) / first.lifetime_ms
            assert 0.5 <= share < 0.9
            assert renewed.key_pem != first.key_pem
            assert cache.to(hasty.node_address) is not before
            await eventually(lambda: clock_ms() > first.expires_at_ms, 3)
            stub = usage_grpc.UsageServiceStub(cache.to(hasty.node_address))
            assert (await stub.ListReporters(usage_pb.ListReportersRequest())).node_ids == ["eu-1"]
            assert not node.call.done()
        await cache.aclose()

    shown = (await hasty.enrolled())["eu-1"].certificate_expires_at.ToMilliseconds()
    kept = IdentityFile(node_dir, None).read()
    assert kept is not None
    assert abs(shown - kept.expires_at_ms) < 3_000
    assert kept.expires_at_ms > first.expires_at_ms


async def test_a_certificate_that_has_ended_opens_nothing(hasty: ControlPlane) -> None:
    """Neither a new connection nor calls on one that was opened while it held."""
    identity, question = await hasty.joined("eu-1"), usage_pb.ListReportersRequest()
    async with node_channel(identity, hasty) as opened_before:
        before = usage_grpc.UsageServiceStub(opened_before)
        await before.ListReporters(question, timeout=5)
        await eventually(lambda: clock_ms() > identity.expires_at_ms, 5)

        refusal = await refused(before.ListReporters(question, timeout=5))

    async with node_channel(identity, hasty) as channel:
        stub = usage_grpc.UsageServiceStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.ListReporters(question, timeout=5)
    assert refusal.code is grpc.StatusCode.UNAUTHENTICATED
    assert refusal.message == "the certificate of eu-1 has ended"
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize(
    ("age", "event"),
    [
        (0.6, "certificate_not_renewed"),
        (0.9, "certificate_ends_soon"),
        (1.1, "certificate_expired"),
    ],
)
async def test_a_renewal_that_fails_is_tried_again_and_told_the_louder_the_later(
    tmp_path: Path, age: float, event: str
) -> None:
    """A certificate of a second, on a clock that stands; its control plane is away."""
    now_ms, lifetime_ms, request = clock_ms(), 1_000, KeyRequest.make("eu-1")
    authority = Authority.make(datetime.now(UTC))
    issued = authority.node_certificate(
        request.request_der,
        NodeName("eu-1", 1),
        datetime.now(UTC),
        timedelta(milliseconds=lifetime_ms),
    )
    soon = Identity(
        "eu-1",
        issued.chain_pem,
        request.key_pem,
        authority.certificate_pem,
        issued_at_ms=now_ms - round(lifetime_ms * age),
        expires_at_ms=now_ms + round(lifetime_ms * (1 - age)),
    )
    renewal = Renewal(
        TlsChannels(soon),
        ["127.0.0.1:1"],
        IdentityFile(tmp_path, None),
        lambda: now_ms,
        lambda least, _most: least,
    )

    with structlog.testing.capture_logs() as logged:
        task = asyncio.create_task(renewal.run())
        await eventually(lambda: len(told(logged)) >= 2)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

    assert set(told(logged)) == {event}


HOUR_MS = 3_600_000


@asynccontextmanager
async def renewing(
    control_plane: ControlPlane, identity: Identity, folder: Path, clock: Callable[[], int]
) -> AsyncIterator[TlsChannels]:
    """Renew a certificate by another clock while the block runs."""
    channels, file = TlsChannels(identity), IdentityFile(folder, None)
    task = asyncio.create_task(Renewal(channels, [control_plane.node_address], file, clock).run())
    try:
        yield channels
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def test_a_node_whose_clock_is_a_day_ahead_does_not_renew_without_end(
    control_plane: ControlPlane, tmp_path: Path
) -> None:
    def ahead() -> int:
        return clock_ms() + 25 * HOUR_MS

    token, request = await control_plane.token("eu-1"), KeyRequest.make("eu-1")
    identity = await join(token, "eu-1", request, ahead)
    async with renewing(control_plane, identity, tmp_path, ahead) as channels:
        await eventually(lambda: channels.generation > 0)

        with pytest.raises(AssertionError, match="did not happen"):
            await eventually(lambda: channels.generation > 1, 0.3)


async def test_a_node_whose_clock_is_behind_renews_before_its_certificate_ends(
    control_plane: ControlPlane, tmp_path: Path
) -> None:
    """By its clock the certificate ends in 44 hours; it does in 24."""
    behind_ms = 20 * HOUR_MS
    token, request = await control_plane.token("eu-1"), KeyRequest.make("eu-1")
    identity = await join(token, "eu-1", request, lambda: clock_ms() - behind_ms)

    def later() -> int:
        return clock_ms() - behind_ms + 15 * HOUR_MS

    async with renewing(control_plane, identity, tmp_path, later) as channels:
        await eventually(lambda: channels.generation > 0)


async def test_a_node_key_that_is_set_later_encrypts_what_was_kept_in_clear(
    control_plane: ControlPlane, node_dir: Path
) -> None:
    token = await control_plane.token_text("eu-1")
    async with membership(settings_of(node_dir, control_plane, join_token=token), clock_ms):
        pass
    assert b"PRIVATE KEY" in (node_dir / "identity").read_bytes()

    for _ in range(2):
        settings = settings_of(node_dir, control_plane, node_key=NODE_KEY)
        async with membership(settings, clock_ms) as member:
            await follows(member, control_plane)

        assert b"PRIVATE KEY" not in (node_dir / "identity").read_bytes()


def told(logged: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return what was logged of certificates."""
    return [each["event"] for each in logged if each["event"].startswith("certificate")]


async def test_nothing_that_holds_a_secret_prints_it(control_plane: ControlPlane) -> None:
    text = await control_plane.token_text("eu-1")
    token = await control_plane.token("eu-2")
    identity, request = await control_plane.joined("eu-3"), KeyRequest.make("eu-3")

    printed = f"{token!r} {identity!r} {request!r} {Membership('a', TlsChannels(identity), text)!r}"

    assert text not in printed
    assert token.secret not in printed
    assert "PRIVATE KEY" not in printed
