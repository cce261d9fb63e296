"""The calls that are measured, and a close look at the first answer to each."""

import http.client
from typing import Final

import msgspec

from tests.load.answers import event_count
from tests.load.jobs import PATH, Target, target
from tests.load.stack import BenchError

EVENTS: Final = 64
# The size of a short answer; every figure of the project is for it.
ANSWER_BYTES: Final = 448
_DEADLINE_S: Final = 15.0


def whole_body(mock_url: str) -> dict[str, object]:
    """Return a call whose whole answer has 448 bytes, by asking the mock once how long it is.

    Raises:
        BenchError: The mock did not answer with status 200.
    """
    first = "a" * 100
    status, answer = posted(target(mock_url, _whole(first)))
    if status != 200:
        raise BenchError(f"the mock answered with status {status}")
    return _whole("a" * (len(first) + ANSWER_BYTES - len(answer)))


def _whole(text: str) -> dict[str, object]:
    return {"model": "mock-echo", "messages": [{"role": "user", "content": text}]}


def stream_body(pace_ms: int = 0) -> dict[str, object]:
    """Return a call whose answer is a stream of 64 events with text."""
    pace = f"-pace-{pace_ms}" if pace_ms else ""
    question = [{"role": "user", "content": "Count to sixty-four."}]
    return {"model": f"mock-tokens-{EVENTS}{pace}", "messages": question, "stream": True}


def probed(unknown: Target) -> Target:
    """Make the call once and look at the answer closely; return the target with what is right.

    Raises:
        BenchError: The answer is not what was asked for.
    """
    status, answer = posted(unknown)
    if status != 200:
        raise BenchError(f"the first call got status {status}: {answer[:400].decode()}")
    if '"stream":true' in unknown.body:
        events = event_count(answer)
        pieces = answer.count(b'"content":"') - answer.count(b'"content":""')
        if pieces != EVENTS or not answer.endswith(b"data: [DONE]\n\n"):
            raise BenchError(f"the first stream had {pieces} events with text, not {EVENTS}")
        return msgspec.structs.replace(unknown, answer_events=events)
    asked = msgspec.json.decode(unknown.body)["messages"][0]["content"]
    said = msgspec.json.decode(answer)["choices"][0]["message"]["content"]
    if said != asked:
        raise BenchError(f"the first answer was {said[:400]!r}")
    return msgspec.structs.replace(unknown, answer_bytes=len(answer))


def posted(to: Target) -> tuple[int, bytes]:
    """Make one call with the standard library's client; return status and body.

    Raises:
        BenchError: There was no answer.
    """
    connection = http.client.HTTPConnection(to.host, to.port, timeout=_DEADLINE_S)
    headers = {"content-type": "application/json"}
    headers.update(to.credentials)
    try:
        connection.request("POST", PATH, to.body, headers)
        response = connection.getresponse()
        return response.status, response.read()
    except (OSError, http.client.HTTPException) as error:
        raise BenchError(f"the first call failed: {error}") from error
    finally:
        connection.close()
