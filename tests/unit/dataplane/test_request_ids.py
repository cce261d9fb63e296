import os
import uuid

from hypothesis import given
from hypothesis import strategies as st

from dataplane.domain.request_ids import request_id

TIMES = st.integers(0, 2**48 - 1)
RANDOM = st.binary(min_size=10, max_size=10)


@given(TIMES, RANDOM)
def test_an_id_is_a_uuid_of_version_7_with_its_time(now_ms: int, random_bytes: bytes) -> None:
    text = request_id(now_ms, random_bytes)

    parsed = uuid.UUID(text)
    assert str(parsed) == text
    assert (parsed.version, parsed.variant) == (7, uuid.RFC_4122)
    assert parsed.int >> 80 == now_ms


@given(TIMES, TIMES, RANDOM, RANDOM)
def test_ids_sort_by_time(first_ms: int, second_ms: int, first: bytes, second: bytes) -> None:
    if first_ms != second_ms:
        is_earlier = request_id(first_ms, first) < request_id(second_ms, second)
        assert is_earlier is (first_ms < second_ms)


def test_ids_of_one_millisecond_differ() -> None:
    assert len({request_id(1, os.urandom(10)) for _ in range(1000)}) == 1000
