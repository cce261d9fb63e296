"""Providers' secrets are sealed to one stream, and only that node opens them."""

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PublicKey
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite
from tollkeeper.config.v1 import config_service_pb2 as pb

from dataplane.control.sealing import SealingKey, UnsealableError
from tests.control.configurations import configuration
from tests.control.scripted import full
from tests.control.watching import watching


def _sealed(public: bytes, info: bytes = b"tollkeeper secret 1\0c1\x003") -> bytes:
    suite = Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM)
    return suite.encrypt(b"sk-sealed", X25519PublicKey.from_public_bytes(public), info)


async def test_a_sealed_secret_is_opened_by_the_node_that_it_was_sealed_to() -> None:
    async with watching() as it:
        hello = (await it.control_plane.hear("hello")).hello
        assert set(hello.capabilities) == {
            pb.CAPABILITY_DELTA,
            pb.CAPABILITY_SEALED_SECRETS,
            pb.CAPABILITY_GOODBYE,
        }
        bundle = pb.SecretBundle(credential_id="c1", version=3, sealed=_sealed(hello.sealing_key))
        it.control_plane.say(*full(1, configuration(1), 5, secrets=[bundle]))
        await it.control_plane.hear("ack")

        [credential] = it.current.get().routers["r1"].rules[0].provider.credentials
        assert credential.secret is not None
        assert credential.secret.reveal() == b"sk-sealed"
        assert "sealed" not in repr(it.watch.holdings.secrets)


async def test_every_stream_has_a_key_of_its_own() -> None:
    async with watching() as it:
        first = (await it.control_plane.hear("hello")).hello.sealing_key
        it.control_plane.say(None)
        second = (await it.control_plane.hear("hello")).hello.sealing_key
    assert first != second
    assert len(first) == 32


async def test_a_secret_that_cannot_be_opened_refuses_the_transfer() -> None:
    async with watching() as it:
        other = SealingKey().public
        bundle = pb.SecretBundle(credential_id="c1", version=3, sealed=_sealed(other))
        it.control_plane.say(*full(1, configuration(1), 5, secrets=[bundle]))
        nack = (await it.control_plane.hear("nack")).nack
        assert nack.reason == pb.NACK_REASON_INVALID
        assert list(nack.problems) == ["the secret of the credential c1 cannot be opened"]


@pytest.mark.parametrize("sealed", [b"", b"short", bytes(32), bytes(100)])
def test_what_is_not_sealed_is_not_opened(sealed: bytes) -> None:
    with pytest.raises(UnsealableError):
        SealingKey().open("c1", 3, sealed)


@pytest.mark.parametrize(("credential_id", "version"), [("c2", 3), ("c1", 4), ("c1\x003", 3)])
def test_a_secret_is_bound_to_its_credential_and_version(credential_id: str, version: int) -> None:
    key = SealingKey()
    sealed = _sealed(key.public)
    assert key.open("c1", 3, sealed).reveal() == b"sk-sealed"
    with pytest.raises(UnsealableError):
        key.open(credential_id, version, sealed)
