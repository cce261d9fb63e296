"""`chat` and `health`, against a small gateway."""

import contextlib
import json
import os
import pty
import select
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self

import pytest

from controlplane.cli.profile import DeviceCredential, Profile, write_profile
from tests.cli.conftest import Run
from tests.cli.gateways import ScriptedGateway, serving_gateway

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


CHAT = "POST /v1/chat/completions"


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> Iterator[ScriptedGateway]:
    """A gateway that answers one call after the other."""
    with serving_gateway() as gateway:
        monkeypatch.setenv("TOLLKEEPER_URL", gateway.url)
        monkeypatch.setenv("TOLLKEEPER_API_KEY", API_KEY)
        yield gateway


def test_a_device_presents_its_id_and_token_and_says_what_it_is(
    program: Run, scripted: ScriptedGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TOLLKEEPER_API_KEY")
    write_profile(Profile(scripted.url, DeviceCredential("abcdefghijkl", "tks_token")))
    scripted.will_answer(CHAT, answer("Hello"))

    result = program("chat", "Hi")

    assert (result.exit_code, result.stdout) == (0, "Hello\n")
    headers = scripted.asked[0].headers
    assert headers["x-device-id"] == "abcdefghijkl"
    assert headers["x-session-token"] == "tks_token"
    assert headers["x-device-platform"]
    assert headers["x-device-version"]
    assert "authorization" not in headers


@pytest.mark.parametrize(
    ("arguments", "stdin"), [(["--api-key", "tk_given"], None), (["--api-key", "-"], "tk_given\n")]
)
def test_a_key_may_be_given_for_one_call(
    program: Run, scripted: ScriptedGateway, arguments: list[str], stdin: str | None
) -> None:
    scripted.will_answer(CHAT, answer("Hello"))

    assert program("chat", *arguments, "Hi", stdin=stdin).exit_code == 0
    assert scripted.asked[0].headers["authorization"] == "Bearer tk_given"


@pytest.mark.parametrize("line", ["chat --api-key -", "chat --interactive --api-key -"])
def test_stdin_is_not_both_the_key_and_the_message(
    program: Run, scripted: ScriptedGateway, line: str
) -> None:
    assert program(*line.split(), stdin="tk_given").exit_code == 2
    assert scripted.asked == []


@pytest.mark.parametrize("flags", [[], ["--stream"]])
def test_a_refusal_says_when_to_come_again_and_where_to_turn(
    program: Run, scripted: ScriptedGateway, flags: list[str]
) -> None:
    links = {"upgrade_url": "https://up.example", "support_url": "https://help.example"}
    scripted.will_refuse(CHAT, 429, "rate_limit_exceeded", links, retry_after="12")

    result = program("chat", *flags, "Hi")

    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == (
        "refused: rate_limit_exceeded: because of rate_limit_exceeded; try again in 12 s; "
        "upgrade at https://up.example; support: https://help.example\n"
    )


@pytest.mark.parametrize(
    ("headers", "warning"),
    [
        ({"x-ratelimit-remaining-requests": "10"}, ""),
        ({"x-ratelimit-remaining-requests": "many"}, ""),
        ({"x-ratelimit-remaining-tokens": "1"}, ""),
        (
            {"x-ratelimit-remaining-requests": "9", "x-ratelimit-reset-requests": "1m30s"},
            "warning: 9 requests left for 1m30s\n",
        ),
        (
            {
                "x-ratelimit-remaining-requests": "4",
                "x-ratelimit-remaining-device": "1",
                "x-ratelimit-reset-device": "2026-11-22T00:00:00Z",
            },
            "warning: 1 request left until 2026-11-22T00:00:00Z\n",
        ),
    ],
)
def test_a_caller_that_has_few_requests_left_is_warned(
    program: Run, gateway: Gateway, headers: dict[str, str], warning: str
) -> None:
    gateway.answers(answer("Hello"))
    gateway.headers |= headers

    result = program("chat", "Hi")

    assert (result.exit_code, result.stdout, result.stderr) == (0, "Hello\n", warning)


def test_a_stream_warns_too(program: Run, gateway: Gateway) -> None:
    gateway.streams(delta("Hi"), "[DONE]")
    gateway.headers["x-ratelimit-remaining-requests"] = "0"

    result = program("chat", "--stream", "Hi")

    assert (result.stdout, result.stderr) == ("Hi\n", "warning: 0 requests left\n")


def sent(gateway: ScriptedGateway) -> list[tuple[str, list[tuple[str, str]]]]:
    """Return model and messages of each call."""
    return [
        (
            asked.body["model"],
            [(message["role"], message["content"]) for message in asked.body["messages"]],
        )
        for asked in gateway.asked
    ]


def test_a_conversation_tells_the_model_what_was_said_before(
    program: Run, scripted: ScriptedGateway
) -> None:
    for number in range(4):
        scripted.will_answer(CHAT, answer(f"answer {number}"))
    typed = "first\n\nsecond\n/new\nthird\n/model gpt-4o\nfourth\n/exit\nnever said\n"

    result = program("chat", "--interactive", stdin=typed)

    assert result.exit_code == 0, result.stderr
    assert result.stdout == "answer 0\nanswer 1\nanswer 2\nanswer 3\n"
    assert sent(scripted) == [
        ("mock-echo", [("user", "first")]),
        ("mock-echo", [("user", "first"), ("assistant", "answer 0"), ("user", "second")]),
        ("mock-echo", [("user", "third")]),
        ("gpt-4o", [("user", "third"), ("assistant", "answer 2"), ("user", "fourth")]),
    ]


def test_a_conversation_may_begin_on_the_command_line(
    program: Run, scripted: ScriptedGateway
) -> None:
    scripted.will_answer(CHAT, answer("ok"))

    assert program("chat", "-i", "hello", stdin="and then\n").exit_code == 0
    assert [messages[-1][1] for _, messages in sent(scripted)] == ["hello", "and then"]


def test_a_refused_turn_is_told_and_forgotten_and_the_conversation_goes_on(
    program: Run, scripted: ScriptedGateway
) -> None:
    scripted.will_refuse(CHAT, 404, "model_not_found")
    scripted.will_answer(CHAT, answer("here"))

    result = program("chat", "--interactive", stdin="lost\n/unknown\nfound\n")

    assert (result.exit_code, result.stdout) == (1, "here\n")
    assert "model_not_found" in result.stderr
    assert "/model NAME" in result.stderr
    assert sent(scripted)[1] == ("mock-echo", [("user", "found")])


def test_a_conversation_survives_a_gateway_that_is_away(
    program: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOLLKEEPER_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("TOLLKEEPER_API_KEY", API_KEY)

    result = program("chat", "--interactive", stdin="one\ntwo\n")

    assert result.exit_code == 1
    assert result.stderr.count("cannot talk to the gateway") == 2


class Terminal:
    """The program with a terminal of its own, as a person has it."""

    def __init__(self, *arguments: str) -> None:
        self._keyboard, terminal = pty.openpty()
        program = "from controlplane.cli import main; main()"
        self.process = subprocess.Popen(
            [sys.executable, "-c", program, *arguments],
            stdin=terminal,
            stdout=terminal,
            stderr=terminal,
            start_new_session=True,
            # Tests that were started in the background ignore interrupts, and so would all they start.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "TERM": "dumb"},
        )
        os.close(terminal)
        self._shown = b""

    def types(self, text: str) -> None:
        os.write(self._keyboard, text.encode())

    def shows(self, text: str, deadline_s: float = 15.0) -> None:
        """Wait until the terminal has shown a text, after the one that was waited for before."""
        ends_at = time.monotonic() + deadline_s
        while text.encode() not in self._shown:
            readable, _, _ = select.select(
                [self._keyboard], [], [], max(0.0, ends_at - time.monotonic())
            )
            assert readable, self._shown
            self._shown += os.read(self._keyboard, 65_536)
        self._shown = self._shown.partition(text.encode())[2]

    def interrupts_until_it_shows(self, text: str) -> None:
        """Interrupt as a person does: again, when nothing happened.

        Python loses a signal that comes when the prompt is there and the wait for a key has not begun.
        """
        for _ in range(15):
            self.process.send_signal(signal.SIGINT)
            with contextlib.suppress(AssertionError):
                return self.shows(text, 1.0)
        raise AssertionError(self._shown)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._keyboard)


def test_on_a_terminal_lines_are_kept_for_the_next_conversation_out_of_others_sight(
    scripted: ScriptedGateway, tmp_path: Path
) -> None:
    scripted.will_answer(CHAT, answer("the answer"))

    with Terminal("chat", "--interactive") as first:
        first.shows("> ")
        first.types("a question\n")
        first.shows("the answer")
        first.shows("> ")
        # The end of input.
        first.types("\x04")
        assert first.process.wait(15) == 0
    history = tmp_path / "config" / "tollkeeper" / "chat-history"
    assert history.read_text() == "a question\n"
    assert stat.S_IMODE(history.stat().st_mode) == 0o600

    with Terminal("chat", "--interactive") as second:
        second.shows("> ")
        # The key that goes back in the history.
        second.types("\x10\n")
        second.shows("the answer")
        second.shows("> ")
        second.types("/exit\n")
        assert second.process.wait(15) == 0
    assert [messages for _, messages in sent(scripted)] == [[("user", "a question")]] * 2


def test_an_interrupt_ends_the_turn_and_not_the_conversation(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.settimeout(15)
        monkeypatch.setenv("TOLLKEEPER_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setenv("TOLLKEEPER_API_KEY", API_KEY)
        with Terminal("chat", "--interactive") as terminal:
            terminal.shows("> ")
            terminal.types("a question\n")
            with silent.accept()[0]:
                terminal.interrupts_until_it_shows("interrupted")
            terminal.shows("> ")
            terminal.interrupts_until_it_shows("> ")
            terminal.types("/exit\n")

            assert terminal.process.wait(15) == 0
