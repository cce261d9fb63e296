from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataplane.mock.protocol import (
    MAX_BODY_BYTES,
    MAX_HEAD_BYTES,
    MalformedRequestError,
    Request,
    RequestParser,
)

DIALOGUE = (
    b"POST /a?beta=true HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello"
    b"GET /b HTTP/1.1\r\n\r\n"
    b"\r\nPOST /c HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"5;name=value\r\nhello\r\nA\r\n, chunks\r\n\r\n0\r\nTrailer: x\r\n\r\n"
    b"POST /d HTTP/1.1\r\ncontent-length: 0\r\nConnection: Close\r\n\r\n"
)


def all_requests(parser: RequestParser) -> list[Request]:
    return list(iter(parser.next_request, None))


@given(st.lists(st.integers(0, len(DIALOGUE)), max_size=12))
def test_requests_are_the_same_however_their_bytes_are_split(cuts: list[int]) -> None:
    parser, requests = RequestParser(), []
    edges = [0, *sorted(cuts), len(DIALOGUE)]

    for start, end in pairwise(edges):
        parser.feed(DIALOGUE[start:end])
        requests += all_requests(parser)

    assert [(r.method, r.path, r.body, r.keeps_alive) for r in requests] == [
        (b"POST", b"/a", b"hello", True),
        (b"GET", b"/b", b"", True),
        (b"POST", b"/c", b"hello, chunks\r\n", True),
        (b"POST", b"/d", b"", False),
    ]
    assert requests[0].headers == {b"host": b"x", b"content-length": b"5"}
    assert parser.pending_bytes == 0


def test_a_request_that_came_byte_by_byte_is_complete_only_at_its_last_byte() -> None:
    parser = RequestParser()
    request = b"POST /a HTTP/1.1\r\nContent-Length: 2\r\n\r\nhi"

    for position in range(len(request) - 1):
        parser.feed(request[position : position + 1])
        assert parser.next_request() is None
    parser.feed(b"i")

    complete = parser.next_request()
    assert complete is not None
    assert complete.body == b"hi"


def test_a_client_that_expects_100_is_told_once_that_the_body_may_come() -> None:
    parser = RequestParser()
    parser.feed(b"POST /a HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n")

    assert parser.next_request() is None
    assert parser.takes_continue()
    assert not parser.takes_continue()


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"nonsense\r\n\r\n", 400),
        (b"GET  / HTTP/1.1\r\n\r\n", 400),
        (b"GET http://x/ HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/1.0\r\n\r\n", 505),
        (b"PRI * HTTP/2.0\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nbad\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nname : x\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\na: x\r\n folded: y\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\ncontent-length: -1\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\ntransfer-encoding: gzip, chunked\r\n\r\n", 501),
        (b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n-1\r\n", 400),
        (b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n1\r\nab\r\n", 400),
        (b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n" + b"0" * 5000, 400),
        (b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n7fffffff\r\n", 413),
        (b"POST / HTTP/1.1\r\ncontent-length: %d\r\n\r\n" % (MAX_BODY_BYTES + 1), 413),
        (b"GET / HTTP/1.1\r\na: " + b"x" * MAX_HEAD_BYTES, 431),
    ],
)
def test_bytes_that_are_no_request_are_refused(data: bytes, status: int) -> None:
    parser = RequestParser()
    parser.feed(data)

    with pytest.raises(MalformedRequestError) as refusal:
        parser.next_request()

    assert refusal.value.status == status
