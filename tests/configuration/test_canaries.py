"""What must stay secret is in the clear nowhere: no file, no wire without TLS, no log, nothing that prints itself."""

import asyncio
import base64
import logging
import secrets
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc.aio
import pytest
import structlog
import structlog.testing
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from tollkeeper.admin.v1 import api_key_service_pb2 as key_pb
from tollkeeper.admin.v1 import api_key_service_pb2_grpc as key_grpc
from tollkeeper.admin.v1 import credential_service_pb2 as credential_pb
from tollkeeper.admin.v1 import credential_service_pb2_grpc as credential_grpc
from tollkeeper.admin.v1 import node_service_pb2 as node_pb
from tollkeeper.admin.v1 import organization_service_pb2 as organization_pb
from tollkeeper.admin.v1 import organization_service_pb2_grpc as organization_grpc
from tollkeeper.admin.v1 import provider_service_pb2 as provider_pb
from tollkeeper.admin.v1 import provider_service_pb2_grpc as provider_grpc
from tollkeeper.admin.v1 import router_service_pb2 as router_pb
from tollkeeper.admin.v1 import router_service_pb2_grpc as router_grpc
from tollkeeper.admin.v1 import user_service_pb2 as user_pb
from tollkeeper.admin.v1 import user_service_pb2_grpc as user_grpc
from tollkeeper.config.v1 import resources_pb2

from controlplane.secrets.sealing import Sealer, parse_master_keys
from controlplane.settings import TlsMode
from controlplane.store.authorities import ensure_authority
from controlplane.store.database import Store
from dataplane.control.channels import TlsChannels, channel_to
from dataplane.control.current import CurrentSnapshot
from dataplane.control.hello import Node
from dataplane.control.holdings import Change, Holdings
from dataplane.control.identity import Identity, IdentityFile, KeyRequest
from dataplane.control.kept import Kept
from dataplane.control.last_known_good import LastKnownGood
from dataplane.control.node_enrollment import join
from dataplane.control.watch import Watch
from dataplane.domain.join_tokens import read_join_token
from tests.configuration.canaries import Written, classes_in, found, printed, tapping
from tests.distribution.node import connected, eventually
from tests.identity.control_planes import (
    BEARER,
    MASTER_KEY,
    OWNER_TOKEN,
    ControlPlane,
    clock_ms,
    running,
)

# Plain text that must be found wherever the configuration is in the clear: else nothing would be found at all.
PROVIDER = "provider-canary-in-plain"
KEY = "acme/alice/laptop"
NODE_KEY = secrets.token_bytes(32)
PRINTED = {
    *("Watch", "CurrentSnapshot", "Snapshot", "Holdings", "Change", "Kept", "RawSecret", "Secret"),
    *("MeasuredFleet", "Watcher", "SealedSecret", "Sealer", "Node", "Settings", "Publisher"),
}
"""Classes of which something must have printed itself."""

PRINTED_JOINED = {"Watch", "Identity", "TlsChannels", "Authority", "Watcher"}


class Keeper(LastKnownGood):
    """Remembers the changes that it was given, so that they print themselves too."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, NODE_KEY, clock_ms)
        self.changes: list[Change] = []

    def keep(self, holdings: Holdings, change: Change) -> None:
        self.changes.append(change)
        super().keep(holdings, change)


async def fill(channel: grpc.aio.Channel) -> dict[str, bytes]:
    """Make a key, and a provider with a secret; return what is secret of them."""
    provider_secret = f"sk-canary-{secrets.token_urlsafe(32)}"
    organization = organization_pb.Organization(name="acme")
    await organization_grpc.OrganizationServiceStub(channel).CreateOrganization(
        organization_pb.CreateOrganizationRequest(organization=organization), metadata=BEARER
    )
    await user_grpc.UserServiceStub(channel).CreateUser(
        user_pb.CreateUserRequest(user=user_pb.User(name="acme/alice")), metadata=BEARER
    )
    endpoint = resources_pb2.Endpoint(
        dialect=resources_pb2.DIALECT_OPENAI, base_url="http://127.0.0.1:9/v1"
    )
    provider = provider_pb.Provider(name=PROVIDER, kind="mock", endpoints=[endpoint])
    await provider_grpc.ProviderServiceStub(channel).CreateProvider(
        provider_pb.CreateProviderRequest(provider=provider), metadata=BEARER
    )
    credential = credential_pb.Credential(name=f"{PROVIDER}/main")
    await credential_grpc.CredentialServiceStub(channel).CreateCredential(
        credential_pb.CreateCredentialRequest(credential=credential, secret=provider_secret),
        metadata=BEARER,
    )
    await router_grpc.RouterServiceStub(channel).CreateRouter(
        router_pb.CreateRouterRequest(router=router_pb.Router(name="routes")), metadata=BEARER
    )
    key = key_pb.ApiKey(name=KEY, router="routes")
    created = await key_grpc.ApiKeyServiceStub(channel).CreateApiKey(
        key_pb.CreateApiKeyRequest(api_key=key), metadata=BEARER
    )
    return {
        "the provider's secret": provider_secret.encode(),
        "the API key": created.api_key.encode(),
        "the master key": base64.b64decode(MASTER_KEY),
        "the owner's token": OWNER_TOKEN.encode(),
        "the node's key": NODE_KEY,
    }


async def revoke(channel: grpc.aio.Channel) -> None:
    """Revoke the key, and wait for the node to have kept that."""
    receipt = await key_grpc.ApiKeyServiceStub(channel).RevokeApiKey(
        key_pb.RevokeApiKeyRequest(name=KEY, wait_ms=5_000), metadata=BEARER
    )
    assert [each.is_kept for each in receipt.applied] == [True]


@asynccontextmanager
async def following(
    address: str,
    folder: Path,
    node: Node,
    connect: Callable[[str], grpc.aio.Channel] = channel_to,
) -> AsyncIterator[Watch]:
    """Run a node until the block ends, which begins when it has a secret on its disk."""
    keeper = Keeper(folder)
    watch = Watch((address,), node, CurrentSnapshot(), clock_ms, keeper=keeper, connect=connect)
    await keeper.load(watch.restore)
    task = asyncio.create_task(watch.run())
    try:
        await eventually(lambda: bool(watch.holdings.secrets) and not keeper.figures.is_behind)
        yield watch
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await keeper.aclose()


async def kept_in(folder: Path) -> Kept:
    """Return what a restart would find."""

    async def take(_kept: Kept) -> bool:
        return True

    keeper = LastKnownGood(folder, NODE_KEY, clock_ms)
    kept = await keeper.load(take)
    await keeper.aclose()
    assert kept is not None
    return kept


@pytest.fixture
def logs(caplog: pytest.LogCaptureFixture) -> Iterator[Callable[[], tuple[str, bytes]]]:
    """Everything that is logged, by whichever library, at every level."""
    caplog.set_level(logging.DEBUG)
    with structlog.testing.capture_logs() as entries:
        yield lambda: ("the log", f"{entries!r}{caplog.text}".encode())


async def test_without_tls_no_secret_is_in_the_clear_anywhere(
    data_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    logs: Callable[[], tuple[str, bytes]],
) -> None:
    token, folder = secrets.token_hex(24), tmp_path / "node"
    written = Written(data_dir, folder)
    async with (
        written.watching(monkeypatch),
        running(data_dir, tls=TlsMode.OFF, join_token=token) as control_plane,
        grpc.aio.insecure_channel(control_plane.admin_address) as admin,
        tapping(control_plane.node_address) as tap,
    ):
        canaries = await fill(admin)
        async with following(tap.address, folder, Node("node-1", "0.1.0", token)) as watch:
            await revoke(admin)
            kept = await kept_in(folder)
            said = printed()
            wire = "the wire", bytes(tap.heard)

            (credential_id,) = watch.holdings.secrets
            assert kept.change is not None
            revealed = kept.change.secrets[credential_id].secret.reveal()
        async with connected(tap.address, token) as old:
            await old.hello("old")
            await old.follow()

    assert revealed == canaries["the provider's secret"]
    assert found(canaries, wire) == []
    everywhere = [*written.places, *said, logs()]
    assert found({**canaries, "the nodes' token": token.encode()}, *everywhere) == []

    # It would be found: what is not secret is, and what a node of the first version asks for.
    for places in ([wire], written.places, said):
        assert found({"the name": PROVIDER.encode()}, *places)
    assert found(canaries, ("the wire", bytes(tap.heard)))
    assert "config_applied" in logs()[1].decode()
    assert {"snapshot", "revocations", "what was written", "controlplane.sqlite"} <= {
        name for name, data in written.places if data
    }
    assert classes_in(said) >= PRINTED


async def test_of_a_node_that_joins_nothing_is_in_the_clear_at_all(
    data_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    logs: Callable[[], tuple[str, bytes]],
) -> None:
    folder = tmp_path / "node"
    folder.mkdir()
    written = Written(data_dir, folder)
    async with (
        written.watching(monkeypatch),
        running(data_dir) as control_plane,
        tapping(control_plane.admin_address) as joining,
        tapping(control_plane.node_address) as tap,
    ):
        admin = control_plane.as_administrator()
        canaries = await fill(admin)
        identity, more = await joined(control_plane, joining.address, folder)
        canaries |= more | await authority_of(control_plane)
        connect = TlsChannels(identity).to
        async with following(tap.address, folder, Node("eu-1", "0.1.0", ""), connect) as watch:
            await revoke(admin)
            said = printed()
            assert len(watch.holdings.secrets) == 1
        wires = [("the wire", bytes(tap.heard)), ("joining", bytes(joining.heard))]

    assert found(canaries, *wires, *written.places, *said, logs()) == []
    # Not even what is no secret.
    assert found({"the name": PROVIDER.encode()}, *wires) == []
    # A TLS record of a handshake.
    assert [data[:2] for _, data in wires] == [b"\x16\x03"] * 2

    assert {"identity", "authority.pem"} <= {name for name, data in written.places if data}
    assert classes_in(said) >= PRINTED_JOINED
    named = {"the authority": identity.authority_pem.split(b"\n")[1]}
    assert found(named, *written.places)


async def joined(
    control_plane: ControlPlane, address: str, folder: Path
) -> tuple[Identity, dict[str, bytes]]:
    """Join as the program does; return the identity and what is secret of it."""
    request = node_pb.CreateJoinTokenRequest(node_id="eu-1", addresses=[address])
    created = await control_plane.nodes.CreateJoinToken(request, metadata=BEARER, timeout=5)
    token, file = read_join_token(created.join_token), IdentityFile(folder, NODE_KEY)
    made = KeyRequest.make("eu-1")
    file.write_request(made)
    identity = await join(token, "eu-1", made, clock_ms)
    file.write(identity)
    return identity, {
        "the join token": created.join_token.encode()[-64:],
        "the join token's secret": token.secret.encode(),
        **forms_of_key("the node's certificate key", identity.key_pem),
    }


async def authority_of(control_plane: ControlPlane) -> dict[str, bytes]:
    """Return what is secret of the control plane's authority."""
    store = Store(f"sqlite+aiosqlite:///{control_plane.data_dir / 'controlplane.sqlite'}")
    authority = await ensure_authority(store, Sealer(parse_master_keys(MASTER_KEY)))
    await store.close()
    return forms_of_key("the authority's key", authority.key_pem())


def forms_of_key(name: str, pem: bytes) -> dict[str, bytes]:
    """Return a private key as it is kept, and the number that it is."""
    key = load_pem_private_key(pem, None)
    assert isinstance(key, EllipticCurvePrivateKey)
    number = key.private_numbers().private_value
    return {
        name: pem.split(b"\n")[1],
        f"{name}, as a number": number.to_bytes(32, "big"),
        f"{name}, as it prints": str(number).encode(),
    }
