import copy
import json
import pickle

import pytest

from dataplane.domain.providers import Credential
from dataplane.domain.secret import Secret

TEXT = "sk-very-secret-value-1234"
SECRET = Secret(TEXT.encode())


@pytest.mark.parametrize(
    "shown",
    [repr(SECRET), str(SECRET), f"{SECRET}", f"{SECRET!r:>60}", "%s" % SECRET, repr([SECRET]),
     repr(Credential("c", "n", 1, SECRET))],
)  # fmt: skip
def test_a_secret_shows_its_last_four_characters_at_most(shown: str) -> None:
    assert "1234" in shown
    assert "value" not in shown


def test_a_short_secret_shows_nothing() -> None:
    assert repr(Secret(b"hunter2")) == "Secret(…)"


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_secret_is_never_pickled(protocol: int) -> None:
    with pytest.raises(TypeError):
        pickle.dumps(SECRET, protocol)


def test_a_secret_is_never_copied_or_encoded() -> None:
    with pytest.raises(TypeError):
        copy.deepcopy(SECRET)
    with pytest.raises(TypeError):
        json.dumps({"secret": SECRET})
    assert not hasattr(SECRET, "__dict__")


def test_a_secret_is_revealed_by_name_and_compares_by_value() -> None:
    assert SECRET.reveal() == TEXT.encode()
    assert Secret(TEXT.encode()) == SECRET != Secret(b"other")
    assert hash(Secret(TEXT.encode())) == hash(SECRET)
