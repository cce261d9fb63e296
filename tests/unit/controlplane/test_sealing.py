import base64
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlplane.secrets.sealing import (
    MasterKey,
    Sealer,
    SealingError,
    Secret,
    parse_master_keys,
)

OLD, NEW = MasterKey(b"\x01" * 32), MasterKey(b"\x02" * 32)
SECRET = Secret(b"sk-0123456789abcdefghijklmnop")


@given(st.binary(max_size=9000))
def test_what_was_sealed_opens_to_the_same(value: bytes) -> None:
    sealed = Sealer([OLD]).seal("c", 1, Secret(value))

    assert Sealer([OLD]).open("c", 1, sealed).reveal() == value
    assert len(value) < 4 or value not in sealed


def test_the_same_secret_never_looks_the_same() -> None:
    sealer = Sealer([OLD])

    assert sealer.seal("c", 1, SECRET) != sealer.seal("c", 1, SECRET)


@pytest.mark.parametrize(("credential_id", "version"), [("d", 1), ("c", 2), ("", 1), ("cc", 1)])
def test_a_sealed_secret_opens_only_for_its_credential_and_version(
    credential_id: str, version: int
) -> None:
    sealer = Sealer([OLD])
    sealed = sealer.seal("c", 1, SECRET)

    with pytest.raises(SealingError, match="cannot be opened"):
        sealer.open(credential_id, version, sealed)


def test_every_damaged_byte_is_noticed() -> None:
    sealer = Sealer([OLD])
    sealed = sealer.seal("c", 1, SECRET)

    for position in range(len(sealed)):
        damaged = bytearray(sealed)
        damaged[position] ^= 1
        with pytest.raises(SealingError):
            sealer.open("c", 1, bytes(damaged))
    for length in range(len(sealed)):
        with pytest.raises(SealingError):
            sealer.open("c", 1, sealed[:length])


def test_the_first_key_seals_and_all_of_them_open() -> None:
    before = Sealer([OLD]).seal("c", 1, SECRET)
    rotated = Sealer([NEW, OLD])
    after = rotated.seal("c", 1, SECRET)

    assert rotated.open("c", 1, before) == rotated.open("c", 1, after) == SECRET
    assert (rotated.is_current(before), rotated.is_current(after)) == (False, True)
    with pytest.raises(SealingError, match="unknown master key"):
        Sealer([OLD]).open("c", 1, after)


def test_a_secret_does_not_print() -> None:
    assert repr(SECRET) == str(SECRET) == f"{SECRET}" == "Secret(…mnop)"
    assert repr(Secret(b"short-secret")) == "Secret(…)"
    assert repr(OLD) == f"MasterKey({OLD.key_id.hex()})"
    with pytest.raises(TypeError):
        pickle.dumps(SECRET)


def test_a_keyring_is_read_in_order() -> None:
    first, second = (base64.b64encode(bytes([n]) * 32).decode() for n in (1, 2))

    keys = parse_master_keys(f"{first}, {second}")

    assert [key.key_id for key in keys] == [OLD.key_id, NEW.key_id]
    assert len(OLD.key_id) == 4


@pytest.mark.parametrize("text", ["", ",", "c2hvcnQ=", "not base64!", "AAAA,", "é"])
def test_a_key_that_is_none_is_refused_without_showing_it(text: str) -> None:
    with pytest.raises(SealingError) as caught:
        parse_master_keys(text)

    assert str(caught.value) == "a master key is 32 bytes in base64"


def test_there_must_be_a_key() -> None:
    with pytest.raises(SealingError, match="no master key"):
        Sealer([])
