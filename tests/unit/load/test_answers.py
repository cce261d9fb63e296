from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.load.answers import Answer, AnswerParser, MalformedAnswerError, event_count

WHOLE = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 7\r\n\r\n{'a':1}"
CHUNKED = (
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"A\r\ndata: {}\n\n\r\n"
    b"4;name=value\r\ndata\r\n"
    b"0a\r\n: [DONE]\n\n\r\n"
    b"0\r\nx-trailer: 1\r\n\r\n"
)
EMPTY = b"HTTP/1.1 204 No Content\r\nx: y\r\n\r\n"


def answers_in(pieces: list[bytes]) -> list[Answer]:
    parser = AnswerParser()
    return [answer for piece in pieces if (answer := parser.feed(piece)) is not None]


@given(
    st.sampled_from([WHOLE, CHUNKED, EMPTY]),
    st.sets(st.integers(min_value=1, max_value=len(CHUNKED) - 1)),
)
def test_an_answer_is_the_same_however_its_bytes_are_split(data: bytes, cuts: set[int]) -> None:
    places = [0, *sorted(cut for cut in cuts if cut < len(data)), len(data)]
    pieces = [data[a:b] for a, b in pairwise(places)]

    [answer] = answers_in(pieces)

    assert [answer] == answers_in([data])


def test_a_body_with_a_length_is_taken_exactly() -> None:
    [answer] = answers_in([WHOLE])

    assert (answer.status, answer.body) == (200, b"{'a':1}")


def test_chunks_are_joined_without_their_sizes_and_trailers() -> None:
    [answer] = answers_in([CHUNKED])

    assert answer.body == b"data: {}\n\ndata: [DONE]\n\n"
    assert event_count(answer.body) == 2


def test_an_answer_without_content_ends_with_its_head() -> None:
    [answer] = answers_in([EMPTY])

    assert (answer.status, answer.body) == (204, b"")


def test_one_connection_carries_one_answer_after_the_other() -> None:
    answers = answers_in([WHOLE, CHUNKED, WHOLE[:30], WHOLE[30:]])

    assert [len(answer.body) for answer in answers] == [7, 24, 7]


def test_events_of_a_stream_under_way_are_seen() -> None:
    parser = AnswerParser()

    assert parser.feed(CHUNKED[: CHUNKED.index(b"4;name")]) is None

    assert parser.partial_events == 1


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (WHOLE + b"x", "follow the end"),
        (CHUNKED + b"x", "follow the end"),
        (b"HTTP/1.1 200 OK\r\nx: y\r\n\r\n", "no length"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab", "no length"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n", "no length"),
        (WHOLE.replace(b"\r\n\r\n", b"\r\nTransfer-Encoding: chunked\r\n\r\n"), "given twice"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n", "not understood"),
        (CHUNKED.replace(b"A\r\n", b"9\r\n", 1), "longer than its size"),
        (CHUNKED.replace(b"A\r\n", b"+A\r\n", 1), "no size"),
        (CHUNKED.replace(b"A\r\n", b"\r\n", 1), "no size"),
        (b"HTTP/1.0 200 OK\r\n\r\n", "no status line"),
        (b"HTTP/1.1 2x0 OK\r\n\r\n", "no status line"),
        (b"HTTP/1.1 100 Continue\r\n\r\n", "not asked for"),
        (b"HTTP/1.1 200 OK\r\nx: " + b"y" * 70_000, "head is too large"),
    ],
)
def test_what_is_not_exactly_one_answer_is_refused(data: bytes, reason: str) -> None:
    with pytest.raises(MalformedAnswerError, match=reason):
        answers_in([data])


@pytest.mark.parametrize("data", [WHOLE, CHUNKED])
def test_an_answer_that_is_cut_is_no_answer(data: bytes) -> None:
    assert answers_in([data[:-1]]) == []
