"""Names that stand in a body twice: found however they are written, and never seen where they are not."""

import json

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataplane.http.codecs.decoding import has_duplicates, is_plain

READ = ("model", "tools")
_FIELDS = msgspec.json.Decoder(dict[str, msgspec.Raw])
_NAMES = st.sampled_from(
    ['"model"', '"tools"', r'"\u006dodel"', '"x"', '"caf\u00e9"', r'"caf\u00e9"', '""', r'"a\"b"']
)
_VALUES = st.sampled_from(["1", '"model"', "[]", '{"tools": 1,"tools":2}', '": ,"', "null"])
_PAIRS = st.lists(st.tuples(_NAMES, _VALUES), max_size=5)
_SPACES = st.lists(st.sampled_from(["", "", " ", "  ", "\n"]), min_size=4, max_size=4)


@settings(max_examples=400, deadline=None, database=None)
@given(pairs=_PAIRS, spaces=_SPACES)
def test_a_name_that_is_read_never_stands_twice_in_what_is_sent_as_it_came(
    pairs: list[tuple[str, str]], spaces: list[str]
) -> None:
    colon, comma = f":{spaces[0]}", f",{spaces[1]}"
    inner = comma.join(f"{name}{colon}{value}" for name, value in pairs)
    body = f"{{{spaces[2]}{inner}{spaces[3]}}}".encode()
    names = [name for name, _ in json.loads(body, object_pairs_hook=list)]

    found = has_duplicates(body, READ, frozenset(READ).intersection(names))

    if any(names.count(name) > 1 for name in READ):
        assert found
    if is_plain(body, _FIELDS.decode(body)):
        assert len(set(names)) == len(names)


@pytest.mark.parametrize("separators", [(",", ":"), (", ", ": ")])
@pytest.mark.parametrize(
    "fields", [{"model": "model"}, {"model": "a", "tools": [{"model": 1}], "x": r"\u006d"}]
)
def test_bodies_as_encoders_write_them_are_left_alone(
    separators: tuple[str, str], fields: dict[str, object]
) -> None:
    body = json.dumps(fields, separators=separators).encode()

    assert is_plain(body, _FIELDS.decode(body))
    assert not has_duplicates(body, READ, frozenset(fields))


def test_a_name_that_is_as_long_as_the_spaces_that_are_missing_is_found() -> None:
    body = b'{"model":"","model":"m","a":1,"b":1,"c":1,"d":1,"e":1}'
    spaced = b'{"model": "m", "a": 1, "b": 1, "c": 1, "d": 1, "e": 1}'
    assert len(body) == len(spaced)

    assert has_duplicates(body, READ, frozenset({"model"}))
    assert not has_duplicates(spaced, READ, frozenset({"model"}))
