from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataplane.domain.refusals import Refusal
from dataplane.domain.sse import EventSplitter, data_of, edited, events_of
from tests.recorded import exchanges

_EVENTS = st.lists(
    st.text(
        alphabet=st.characters(exclude_characters="\r\n", exclude_categories=["Cs"]), max_size=12
    ),
    max_size=6,
)


@given(texts=_EVENTS, end=st.sampled_from(["\n\n", "\r\n\r\n"]), cuts=st.lists(st.integers(0, 200)))
def test_every_split_of_the_bytes_gives_the_same_events(
    texts: list[str], end: str, cuts: list[int]
) -> None:
    stream = "".join(f"data: {text}{end}" for text in texts).encode()
    points = sorted({0, len(stream), *(cut for cut in cuts if cut < len(stream))})
    splitter = EventSplitter()

    runs = [splitter.feed(stream[a:b]) for a, b in pairwise(points)]

    assert b"".join(runs) + splitter.rest() == stream
    seen = [data_of(event) for run in runs for event in events_of(run)]
    assert seen == [text.encode() for text in texts]


def test_recorded_streams_survive_byte_by_byte() -> None:
    for exchange in exchanges("messages"):
        events = exchange["response"].get("sse")
        if not events:
            continue
        stream = "".join(events).encode()
        splitter = EventSplitter()

        bytewise = b"".join(splitter.feed(stream[i : i + 1]) for i in range(len(stream)))

        assert bytewise + splitter.rest() == stream


@pytest.mark.parametrize(
    ("event", "data"),
    [
        (b"data: x\n\n", b"x"),
        (b"data:x\n\n", b"x"),
        (b": OPENROUTER PROCESSING\n\n", b""),
        (b"data: {}\nevent: late\n\n", b"{}"),
        (b"event: a\ndata: 1\ndata: 2\n\n", b"1\n2"),
    ],
)
def test_data_is_found_wherever_it_stands(event: bytes, data: bytes) -> None:
    assert data_of(event) == data


def test_an_event_without_end_is_refused_before_it_fills_the_memory() -> None:
    splitter = EventSplitter()

    for _ in range(16):
        splitter.feed(b"x" * (1024 * 1024))

    with pytest.raises(Refusal, match="upstream_invalid_response"):
        splitter.feed(b"x")


@given(
    texts=st.lists(st.sampled_from(["plain", "with MARK", "MARK", "other SIGN", ""]), max_size=8),
    end=st.sampled_from(["\n\n", "\r\n\r\n"]),
)
def test_only_events_that_hold_a_mark_are_edited(texts: list[str], end: str) -> None:
    events = [f"data: {text}{end}" for text in texts]

    result = edited("".join(events).encode(), (b"MARK", b"SIGN"), lambda event: b"<%b>" % event)

    wanted = [f"<{e}>" if "MARK" in e or "SIGN" in e else e for e in events]
    assert result == "".join(wanted).encode()
