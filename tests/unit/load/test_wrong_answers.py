import pytest

from tests.load.answers import Answer
from tests.load.generator import wrong_in
from tests.load.jobs import Target

WHOLE = Target("127.0.0.1", 1, {}, "{}", answer_bytes=4)
STREAM = Target("127.0.0.1", 1, {}, "{}", answer_events=2)


def test_the_right_answers_are_not_wrong() -> None:
    assert wrong_in(Answer(200, b"", b"true"), WHOLE) == ""
    assert wrong_in(Answer(200, b"", b"data: {}\n\ndata: [DONE]\n\n"), STREAM) == ""


@pytest.mark.parametrize(
    ("answer", "to", "seen"),
    [
        (Answer(429, b"", b"slow down"), WHOLE, "status 429: slow down"),
        (Answer(429, b"", b"slow down"), STREAM, "status 429: slow down"),
        (Answer(200, b"", b"false"), WHOLE, "an answer of 5 bytes instead of 4: false"),
        (Answer(200, b"", b"data: [DONE]\n\n"), STREAM, "a stream of 1 events instead of 2"),
        (Answer(200, b"", b'data: {}\n\ndata: {"error":1}\n\n'), STREAM, '{"error":1}'),
    ],
)
def test_a_wrong_answer_is_described_by_what_was_seen(
    answer: Answer, to: Target, seen: str
) -> None:
    assert seen in wrong_in(answer, to)
