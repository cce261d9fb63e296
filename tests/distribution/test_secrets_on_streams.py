"""Secrets of providers are sealed to the stream that they are sent on."""

import grpc
import pytest
from cryptography.exceptions import InvalidTag
from tollkeeper.config.v1 import config_service_pb2 as pb

from controlplane.store import tables
from tests.distribution.conftest import Connect, Rows, credential
from tests.distribution.node import MODERN

CANARY = b"sk-provider-secret"


async def test_a_sealed_secret_is_nowhere_in_clear_and_opens_with_the_key_of_its_stream_alone(
    connect: Connect,
) -> None:
    node, other = await connect(capabilities=MODERN), await connect(capabilities=MODERN)
    await node.hello("node-1")
    received = await node.follow()
    await other.hello("node-2")
    others = await other.follow()

    bundle = received.secrets["credential-1"]

    assert bundle.secret == b""
    assert node.open(bundle) == CANARY
    assert all(CANARY not in chunk.SerializeToString() for chunk in received.chunks)
    assert bundle.sealed != others.secrets["credential-1"].sealed
    with pytest.raises(InvalidTag):
        other.open(bundle)


async def test_a_sealed_secret_is_bound_to_its_credential_and_version(connect: Connect) -> None:
    node = await connect(capabilities=MODERN)
    await node.hello()
    bundle = (await node.follow()).secrets["credential-1"]

    for moved in (
        pb.SecretBundle(credential_id="credential-2", version=1, sealed=bundle.sealed),
        pb.SecretBundle(credential_id="credential-1", version=2, sealed=bundle.sealed),
    ):
        with pytest.raises(InvalidTag):
            node.open(moved)


async def test_a_rotated_secret_comes_with_the_change_and_no_other_one(
    connect: Connect, rows: Rows
) -> None:
    written = await rows.write(credential("credential-2", b"sk-of-another"))
    node = await connect(capabilities=MODERN)
    await node.hello()
    await node.follow_to(written)
    rotated = credential(secret=b"sk-rotated")

    revision = await rows.change(
        tables.Credential,
        "credential-1",
        sealed_secret=rotated.sealed_secret,
        fingerprint=rotated.fingerprint,
    )
    received = await node.follow_to(revision)

    assert received.begin.intent == pb.TRANSFER_INTENT_DELTA
    assert set(received.secrets) == {"credential-1"}
    assert node.open(received.secrets["credential-1"]) == b"sk-rotated"


@pytest.mark.parametrize("sealing_key", [b"", b"short", bytes(32)])
async def test_a_key_that_nothing_can_be_sealed_to_gets_no_secret_in_clear(
    connect: Connect, sealing_key: bytes
) -> None:
    node = await connect()

    await node.say(
        hello=pb.Hello(
            node_id="node-1",
            boot_id="boot-1",
            protocol_version=2,
            capabilities=[pb.CAPABILITY_SEALED_SECRETS],
            sealing_key=sealing_key,
        )
    )

    assert await node.ended() == grpc.StatusCode.INVALID_ARGUMENT
