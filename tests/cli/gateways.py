"""A gateway with a script: a real HTTP server that records what it is asked and answers as told."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True)
class Asked:
    """A request that arrived; header names are in lower case."""

    line: str
    headers: dict[str, str]
    # Of JSON; tests read its fields.
    body: Any


@dataclass(frozen=True)
class Answer:
    status: int
    body: object
    headers: dict[str, str]


@dataclass
class ScriptedGateway:
    """Answers a path with what was queued for it; the last answer is repeated."""

    url: str = ""
    asked: list[Asked] = field(default_factory=list)
    _answers: dict[str, list[Answer]] = field(default_factory=dict)

    def will_answer(self, line: str, body: object, status: int = 200, **headers: str) -> None:
        """Queue an answer of `GET /path`."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        self._answers.setdefault(line, []).append(Answer(status, body, named))

    def will_refuse(
        self,
        line: str,
        status: int,
        code: str,
        details: dict[str, str] | None = None,
        **headers: str,
    ) -> None:
        """Queue a refusal in OpenAI's dialect."""
        error = {"message": f"because of {code}", "type": "t", "code": code, "details": details}
        self.will_answer(line, {"error": error}, status, x_tollkeeper_error=code, **headers)

    def lines(self) -> list[str]:
        """Return what was asked, in order."""
        return [asked.line for asked in self.asked]

    def next_answer(self, line: str) -> Answer:
        queue = self._answers.get(line, [])
        if len(queue) > 1:
            return queue.pop(0)
        return queue[0] if queue else Answer(404, {"error": {"message": "no such path"}}, {})


@contextmanager
def serving_gateway() -> Iterator[ScriptedGateway]:
    """Serve on a free port of the loopback until the end of the block."""
    gateway = ScriptedGateway()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self._answer(json.loads(self.rfile.read(int(self.headers["content-length"]))))

        def do_GET(self) -> None:
            self._answer(None)

        def _answer(self, body: object) -> None:
            line = f"{self.command} {self.path}"
            headers = {name.lower(): value for name, value in self.headers.items()}
            gateway.asked.append(Asked(line, headers, body))
            answer = gateway.next_answer(line)
            text = json.dumps(answer.body).encode()
            # With `send_response` the date would be there twice when a test gives one.
            self.send_response_only(answer.status)
            given = {"content-type": "application/json", "date": self.date_time_string()}
            for name, value in {**given, **answer.headers}.items():
                self.send_header(name, value)
            self.send_header("content-length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        gateway.url = f"http://127.0.0.1:{server.server_port}"
        try:
            yield gateway
        finally:
            server.shutdown()
            thread.join(10)
