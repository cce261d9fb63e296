"""What is sent for a call, and when: a reply is a sequence of steps in time.

Neighbouring steps that are due together are joined into few large writes. A reply that is one such
write and due at once is hot: it is rendered one time and kept, and only its identity is new.
"""

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum, auto
from itertools import chain, islice
from typing import Final, NamedTuple

from dataplane.mock.calls import Answer, Call, Dialect, answer_to
from dataplane.mock.protocol import LAST_CHUNK, STREAM_HEAD, chunk, response

# Below the transport's high-water mark (64 KiB), so that a reader who falls behind is noticed
# after one write.
WRITE_BYTES: Final = 48 * 1024
# Together at most 48 MiB: room for every shape a benchmark asks for.
CACHED_REPLIES: Final = 1024


class Ending(Enum):
    """What happens to the connection after the last step."""

    KEEP = auto()
    CUT = auto()
    NEVER = auto()


class Step(NamedTuple):
    """Bytes that are due `delay_ms` after the call came in, and the output tokens in them."""

    delay_ms: int
    data: bytes
    tokens: int


@dataclass(frozen=True, slots=True)
class Reply:
    """All that follows a call.

    Attributes:
        steps: In the order of their delays; `hole` in their data stands for `identity`.
        counts_as_stream: The reply is open until its last step was handed over.
        input_tokens: What accepting the call adds to the counters.
    """

    steps: Iterator[Step]
    ending: Ending
    hole: bytes
    identity: bytes
    counts_as_stream: bool
    input_tokens: int

    def fill(self, data: bytes) -> bytes:
        """Return `data` with the identity of this reply."""
        return data.replace(self.hole, self.identity)


class Replies:
    """Makes replies to calls and keeps the hot ones, the least recently used of which go first."""

    def __init__(self) -> None:
        self._hot: OrderedDict[tuple[str, Call], Step] = OrderedDict()

    def reply_to(self, dialect: Dialect, call: Call) -> Reply:
        """Return the reply that the model name of `call` asks for."""
        behaviour = call.behaviour
        if behaviour.hangs:
            steps: Iterator[Step] = iter(())
        elif behaviour.status is not None:
            steps = iter((_error_step(dialect, behaviour.status, behaviour.slow_ms),))
        else:
            steps = self._steps(dialect, call)
        return Reply(
            steps=steps,
            ending=_ending(call),
            hole=dialect.hole,
            identity=dialect.identity(),
            counts_as_stream=behaviour.hangs or (call.is_stream and behaviour.status is None),
            input_tokens=0 if behaviour.status is not None else call.input_tokens,
        )

    def _steps(self, dialect: Dialect, call: Call) -> Iterator[Step]:
        key = (dialect.name, call)
        hot = self._hot.get(key)
        if hot is not None:
            self._hot.move_to_end(key)
            return iter((hot,))
        steps = _joined(_steps_of(dialect, call))
        first = next(steps)
        second = next(steps, None)
        if second is not None:
            return chain((first, second), steps)
        if first.delay_ms == 0 and len(first.data) <= WRITE_BYTES:
            self._hot[key] = first
            if len(self._hot) > CACHED_REPLIES:
                self._hot.popitem(last=False)
        return iter((first,))


def _ending(call: Call) -> Ending:
    if call.behaviour.hangs:
        return Ending.NEVER
    if call.behaviour.cut_events is not None and call.behaviour.status is None:
        return Ending.CUT
    return Ending.KEEP


def _error_step(dialect: Dialect, status: int, delay_ms: int) -> Step:
    body = dialect.error_body(status, f"The mock provider was asked for status {status}.")
    retry = b"retry-after: 1\r\n" if status == 429 else b""
    return Step(delay_ms, response(status, body, retry), 0)


def _steps_of(dialect: Dialect, call: Call) -> Iterator[Step]:
    answer = answer_to(call)
    if call.is_stream:
        return _stream_steps(dialect, call, answer)
    return iter((_whole_step(dialect, call, answer),))


def _whole_step(dialect: Dialect, call: Call, answer: Answer) -> Step:
    """Return the JSON answer, due when its last token would be; half of it if it is cut."""
    behaviour = call.behaviour
    delay_ms = behaviour.slow_ms + behaviour.pace_ms * answer.output_tokens
    data = response(200, dialect.body(call, answer))
    if behaviour.cut_events is not None:
        return Step(delay_ms, data[: len(data) // 2], 0)
    return Step(delay_ms, data, answer.output_tokens)


def _stream_steps(dialect: Dialect, call: Call, answer: Answer) -> Iterator[Step]:
    """Yield the head, every event as a chunk of its own, and the end unless the stream is cut.

    What opens the stream is due at once, token `k` (from 1) after the slow start and `k` paces,
    what closes it together with the last token.
    """
    behaviour = call.behaviour
    yield Step(0, STREAM_HEAD, 0)
    due_ms = sent_tokens = 0
    for event, tokens in islice(dialect.events(call, answer), behaviour.cut_events):
        if tokens:
            sent_tokens += tokens
            due_ms = behaviour.slow_ms + behaviour.pace_ms * sent_tokens
        yield Step(due_ms, chunk(event), tokens)
    if behaviour.cut_events is None:
        yield Step(due_ms, LAST_CHUNK, 0)


def _joined(steps: Iterator[Step]) -> Iterator[Step]:
    """Yield `steps` with those that are due together joined up to the size of one write."""
    parts: list[bytes] = []
    size_bytes = tokens = delay_ms = 0
    for step in steps:
        if parts and (step.delay_ms != delay_ms or size_bytes + len(step.data) > WRITE_BYTES):
            yield Step(delay_ms, b"".join(parts), tokens)
            parts.clear()
            size_bytes = tokens = 0
        delay_ms = step.delay_ms
        parts.append(step.data)
        size_bytes += len(step.data)
        tokens += step.tokens
    yield Step(delay_ms, b"".join(parts), tokens)
