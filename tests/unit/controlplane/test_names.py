import secrets

import pytest
from tollkeeper.common.v1 import limits_pb2

from controlplane.domain.errors import InvalidError, StillReferencedError
from controlplane.domain.names import (
    ID_ALPHABET,
    SubjectKind,
    SubjectName,
    candidates,
    new_id,
    organization_of,
    parent_of,
    parse_subject,
    segments_of,
    subject_row_id,
)


def test_a_bare_name_means_ones_own_before_the_shared_one() -> None:
    assert candidates("r1", "acme") == ("acme/r1", "r1")
    assert candidates("other/r1", "acme") == ("other/r1",)
    assert candidates("r1", "") == ("r1",)


def test_a_path_names_its_parent_and_its_organization() -> None:
    assert (parent_of("acme/alice/laptop"), parent_of("acme")) == ("acme/alice", "")
    assert (organization_of("acme/openai"), organization_of("openai")) == ("acme", "")


@pytest.mark.parametrize(
    "name", ["", "/", "a/", "/a", "A", "a b", "-a", "a-", "é", "a\n", "x" * 64, "a//b"]
)
def test_what_is_no_path_is_refused(name: str) -> None:
    with pytest.raises(InvalidError):
        segments_of(name, field="name")


@pytest.mark.parametrize("name", ["a", "a.b-c_d", "0/1/2", "x" * 63])
def test_a_path_has_segments(name: str) -> None:
    assert "/".join(segments_of(name, field="name")) == name


@pytest.mark.parametrize(
    "text",
    [
        "global",
        "organization:acme",
        "user:acme/alice",
        "key:acme/alice/laptop",
        "device:3k2f9a0b1c2d",
        "ip:203.0.113.7",
        "ip:2001:db8:0:1::/64",
        "ip:::/64",
        "endpoint:chat",
        "endpoint:weather-v2_x",
        f"endpoint:{'a' * 63}",
        "model:gpt-4o-mini",
        "model:@cf/meta/llama:free",
        f"model:{'m' * 200}",
    ],
)
def test_a_subject_reads_as_it_is_written(text: str) -> None:
    assert str(parse_subject(text, field="subject")) == text


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("ip:2001:DB8:0:1:2:3:4:5", "ip:2001:db8:0:1::/64"),
        ("ip:2001:db8::1", "ip:2001:db8::/64"),
        ("ip:2001:db8:0:1::9/64", "ip:2001:db8:0:1::/64"),
        ("ip:::ffff:203.0.113.7", "ip:203.0.113.7"),
    ],
)
def test_an_address_counts_as_itself_and_one_of_ipv6_as_its_64(text: str, canonical: str) -> None:
    subject = parse_subject(text, field="subject")

    assert str(subject) == canonical
    assert parse_subject(canonical, field="subject") == subject
    assert subject_row_id(subject.kind, subject.name) == canonical


@pytest.mark.parametrize(
    "text",
    [
        "",
        "global:x",
        "user:",
        "user:acme",
        "user:a/b/c",
        "organization:a/b",
        "a",
        "endpoint:",
        "endpoint:Chat",
        "endpoint:2fast",
        "endpoint:a/b",
        f"endpoint:{'a' * 64}",
        "endpoint:chat\n",
        "model:",
        "model:a b",
        "model:gpt-4o\n",
        "model:é",
        f"model:{'m' * 201}",
        "device:",
        "device:3k2",
        "device:3K2F9A0B1C2D",
        "device:3k2f9a0b1c2d\n",
        "ip:",
        "ip:localhost",
        "ip:203.0.113.007",
        "ip:203.0.113.0/24",
        "ip:203.0.113.7/32",
        "ip:2001:db8::/48",
        "ip:2001:db8::/064",
        "ip:2001:db8::/",
        "ip:fe80::1%eth0",
        "ip:::ffff:203.0.113.7/64",
        "ip: 203.0.113.7",
    ],
)
def test_what_is_no_subject_is_refused(text: str) -> None:
    with pytest.raises(InvalidError) as caught:
        parse_subject(text, field="subject")

    assert caught.value.field == "subject"


def test_subject_kinds_have_the_numbers_of_the_contract() -> None:
    numbers = {name: int(number) for name, number in limits_pb2.SubjectKind.items()}

    assert {f"SUBJECT_KIND_{kind.name}": int(kind) for kind in SubjectKind} == {
        name: number for name, number in numbers.items() if number
    }


def test_limits_have_the_ids_of_the_contract() -> None:
    assert subject_row_id(SubjectKind.USER, "3k2") == "user:3k2"
    assert subject_row_id(SubjectKind.GLOBAL, "") == "global"
    assert subject_row_id(SubjectKind.MODEL, "a/b:c") == "model:a/b:c"
    assert SubjectName(SubjectKind.GLOBAL, "") == parse_subject("global", field="x")


def test_an_id_has_twelve_characters_and_none_twice() -> None:
    ids = {new_id(secrets.randbelow) for _ in range(1000)}

    assert len(ids) == 1000
    assert all(len(found) == 12 and set(found) <= set(ID_ALPHABET) for found in ids)


def test_a_long_list_of_referrers_is_cut_in_words_and_kept_for_programs() -> None:
    error = StillReferencedError("router r", [f"key k{n}" for n in range(25)])

    assert error.detail.endswith("key k19 and 5 more")
    assert len(error.referrers) == 25
