"""`chat` and `health`, against a small gateway."""

import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from tests.cli.conftest import Run

API_KEY = "tk_live_abcdefghijkl_" + "s" * 43 + "check0"


@dataclass
class Gateway:
    """What it was asked, and what it answers next."""

    url: str = ""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    # Promised in the length, and never sent.
    missing_bytes: int = 0
    asked: list[tuple[str, str, Any]] = field(default_factory=list)

    def answers(self, body: object, status: int = 200, **headers: str) -> None:
        self.status, self.body = status, json.dumps(body).encode()
        self.headers = {"content-type": "application/json"} | {
            name.replace("_", "-"): value for name, value in headers.items()
        }

    def streams(self, *events: object) -> None:
        texts = [event if isinstance(event, str) else json.dumps(event) for event in events]
        self.headers = {"content-type": "text/event-stream"}
        self.body = "".join(f"data: {text}\n\n" for text in texts).encode()


@pytest.fixture
def gateway(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gateway]:
    gateway = Gateway()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            self._answer(json.loads(body))

        def do_GET(self) -> None:
            self._answer(None)

        def _answer(self, body: object) -> None:
            gateway.asked.append((self.path, self.headers.get("authorization", ""), body))
            self.send_response(gateway.status)
            for name, value in gateway.headers.items():
                self.send_header(name, value)
            self.send_header("content-length", str(len(gateway.body) + gateway.missing_bytes))
            self.end_headers()
            self.wfile.write(gateway.body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        gateway.url = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setenv("TOLLKEEPER_URL", gateway.url)
        monkeypatch.setenv("TOLLKEEPER_API_KEY", API_KEY)
        yield gateway
        server.shutdown()
        thread.join(10)


def delta(text: str) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": {"content": text}}]}


def answer(text: str) -> dict[str, Any]:
    return {"choices": [{"index": 0, "message": {"role": "assistant", "content": text}}]}


def test_an_answer_is_printed(program: Run, gateway: Gateway) -> None:
    gateway.answers(answer("Hello, ü!"))

    result = program("chat", "--model", "gpt-4o-mini", "Hi there")

    assert (result.exit_code, result.stdout, result.stderr) == (0, "Hello, ü!\n", "")
    ((path, authorization, body),) = gateway.asked
    assert path == "/v1/chat/completions"
    assert authorization == f"Bearer {API_KEY}"
    assert body == {
        "model": "gpt-4o-mini",
        "messages": [{"role": "user", "content": "Hi there"}],
        "stream": False,
    }


def test_a_message_may_be_piped_in(program: Run, gateway: Gateway) -> None:
    gateway.answers(answer("ok"))

    assert program("chat", stdin="from a pipe").exit_code == 0
    assert gateway.asked[0][2]["messages"][0]["content"] == "from a pipe"


def test_a_streamed_answer_is_printed_piece_by_piece(program: Run, gateway: Gateway) -> None:
    role = {"choices": [{"index": 0, "delta": {"role": "assistant", "content": None}}]}
    usage: dict[str, Any] = {"choices": [], "usage": {"total_tokens": 3}}
    gateway.streams(role, delta("Hel"), delta("lo\n"), usage, "[DONE]")

    result = program("chat", "--stream", "Hi")

    assert (result.exit_code, result.stdout, result.stderr) == (0, "Hello\n\n", "")
    assert gateway.asked[0][2]["stream"] is True


@pytest.mark.parametrize("flags", [[], ["--stream"]])
def test_a_refusal_names_its_code_on_stderr(
    program: Run, gateway: Gateway, flags: list[str]
) -> None:
    gateway.answers(
        {"error": {"message": "5 a minute", "type": "requests", "code": "rate_limit_exceeded"}},
        429,
        x_tollkeeper_error="rate_limit_exceeded",
    )

    result = program("chat", *flags, "Hi")

    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == "refused: rate_limit_exceeded: 5 a minute\n"
    assert API_KEY not in result.output


@pytest.mark.parametrize(
    ("status", "body", "line"),
    [
        (400, {"error": {"message": "m", "type": "t", "code": None}}, "refused: t: m"),
        (502, "<html>", "refused: HTTP 502"),
        (500, [], "refused: HTTP 500"),
    ],
)
def test_a_refusal_that_is_not_ours_is_shown_as_far_as_it_goes(
    program: Run, gateway: Gateway, status: int, body: object, line: str
) -> None:
    gateway.answers(body, status)

    result = program("chat", "Hi")

    assert (result.exit_code, result.stderr) == (1, f"{line}\n")


def test_an_error_inside_a_stream_is_a_failure(program: Run, gateway: Gateway) -> None:
    error = {"error": {"message": "the provider left", "code": "upstream_error"}}
    gateway.streams(delta("Hel"), error)

    result = program("chat", "--stream", "Hi")

    assert result.exit_code == 1
    assert result.stdout == "Hel\n"
    assert result.stderr == "refused: upstream_error: the provider left\n"


@pytest.mark.parametrize("missing_bytes", [0, 10])
def test_an_answer_that_is_cut_short_is_a_failure(
    program: Run, gateway: Gateway, missing_bytes: int
) -> None:
    gateway.streams(delta("Hel"))
    gateway.missing_bytes = missing_bytes

    result = program("chat", "--stream", "Hi")

    assert (result.exit_code, result.stdout) == (1, "Hel\n")
    assert "cut short" in result.stderr


@pytest.mark.parametrize("body", [{}, [], {"choices": []}, {"choices": [{"message": {}}]}, "x"])
def test_what_is_no_completion_is_a_failure(program: Run, gateway: Gateway, body: object) -> None:
    gateway.answers(body)

    assert program("chat", "Hi").exit_code == 1


def test_a_stream_that_is_no_stream_is_a_failure(program: Run, gateway: Gateway) -> None:
    gateway.answers(answer("whole"))

    result = program("chat", "--stream", "Hi")

    assert result.exit_code == 1
    assert gateway.url in result.stderr


def test_a_gateway_that_is_away_is_named(program: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOLLKEEPER_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("TOLLKEEPER_API_KEY", API_KEY)

    result = program("chat", "Hi")

    assert result.exit_code == 1
    assert "http://127.0.0.1:1" in result.stderr
    assert API_KEY not in result.output


def test_a_client_without_a_key_is_told_where_it_comes_from(program: Run) -> None:
    result = program("chat", "Hi")

    assert result.exit_code == 1
    assert "TOLLKEEPER_API_KEY" in result.stderr


def test_a_url_of_another_scheme_is_wrong_usage(
    program: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOLLKEEPER_URL", "127.0.0.1:8080")
    monkeypatch.setenv("TOLLKEEPER_API_KEY", API_KEY)

    assert program("chat", "Hi").exit_code == 2


@pytest.mark.parametrize(("status", "exit_code"), [(200, 0), (503, 1), (404, 1), (301, 1)])
def test_health_is_an_exit_code(
    program: Run, gateway: Gateway, status: int, exit_code: int
) -> None:
    gateway.answers({}, status)

    result = program("health", f"{gateway.url}/")

    assert (result.exit_code, result.stdout) == (exit_code, "")
    assert gateway.asked == [("/health/ready", "", None)]


def test_health_of_a_gateway_that_is_away_is_a_failure(program: Run) -> None:
    assert program("health", "http://127.0.0.1:1").exit_code == 1
