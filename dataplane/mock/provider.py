"""The mock provider behind its connections: which path means what, and what was counted."""

from typing import Final

import msgspec

from dataplane.mock.anthropic import Anthropic
from dataplane.mock.behaviours import UnknownModelError
from dataplane.mock.calls import BadCallError, Dialect
from dataplane.mock.openai import OpenAI
from dataplane.mock.protocol import MalformedRequestError, Request, response
from dataplane.mock.replies import Replies, Reply
from dataplane.mock.stats import Stats

# Shown to whoever lists models; any other combination of parts works as well.
LISTED_MODELS: Final = (
    "mock-echo",
    "mock-tokens-64",
    "mock-tokens-64-pace-20",
    "mock-slow-500",
    "mock-status-429",
    "mock-hang",
    "mock-cut-3",
    "mock-no-usage",
    "unpriced-mock",
)
_LISTED_AT_UNIX_S: Final = 1_735_689_600
_LISTED_AT: Final = "2025-01-01T00:00:00Z"

_OPENAI: Final = OpenAI()
_ANTHROPIC: Final = Anthropic()
_DIALECTS: Final[dict[bytes, Dialect]] = {
    b"/v1/chat/completions": _OPENAI,
    b"/v1/messages": _ANTHROPIC,
}
_PAGES: Final = {
    b"/health": b"GET",
    b"/mock/reset": b"POST",
    b"/mock/stats": b"GET",
    b"/v1/models": b"GET",
}


class Provider:
    """Answers requests: a reply in time to a call, plain bytes to anything else."""

    def __init__(self) -> None:
        self.stats = Stats()
        self._replies = Replies()

    def answer(self, request: Request) -> Reply | bytes:
        """Return the reply to `request`, or a whole response."""
        dialect = _DIALECTS.get(request.path)
        if dialect is None:
            return self._page(request)
        self.stats.requests += 1
        if request.method != b"POST":
            return self._refusal(dialect, 405, "Use POST.")
        try:
            call = dialect.decode(request)
        except BadCallError as error:
            return self._refusal(dialect, 400, str(error))
        except UnknownModelError as error:
            return self._refusal(dialect, 404, str(error))
        return self._replies.reply_to(dialect, call)

    def malformed(self, path: bytes, error: MalformedRequestError) -> bytes:
        """Return the response to bytes that are no request, in the dialect of `path` if any."""
        dialect = _DIALECTS.get(path)
        if dialect is None:
            return response(error.status, _OPENAI.error_body(error.status, str(error)))
        self.stats.requests += 1
        return self._refusal(dialect, error.status, str(error))

    def _refusal(self, dialect: Dialect, status: int, message: str) -> bytes:
        data = response(status, dialect.error_body(status, message))
        self.stats.bytes += len(data)
        return data

    def _page(self, request: Request) -> bytes:
        method = _PAGES.get(request.path)
        if method is None:
            return _not_found()
        if method != request.method:
            return response(405, _OPENAI.error_body(405, f"Use {method.decode()}."))
        match request.path:
            case b"/mock/stats":
                return _json(self.stats.as_json())
            case b"/mock/reset":
                # Calls under way keep the counters that they began with.
                self.stats = Stats()
                return _json(self.stats.as_json())
            case b"/v1/models":
                return _model_list(for_anthropic=b"anthropic-version" in request.headers)
            case _:
                return _json({"status": "ok"})


def _json(value: object) -> bytes:
    return response(200, msgspec.json.encode(value))


def _not_found() -> bytes:
    error = {
        "message": "There is nothing at this path.",
        "type": "invalid_request_error",
        "param": None,
        "code": "not_found",
    }
    return response(404, msgspec.json.encode({"error": error}))


def _model_list(*, for_anthropic: bool) -> bytes:
    if for_anthropic:
        entries = [
            {"type": "model", "id": name, "display_name": name, "created_at": _LISTED_AT}
            for name in LISTED_MODELS
        ]
        ends = {"first_id": LISTED_MODELS[0], "last_id": LISTED_MODELS[-1]}
        return _json({"data": entries, "has_more": False, **ends})
    data = [
        {"id": name, "object": "model", "created": _LISTED_AT_UNIX_S, "owned_by": "mock"}
        for name in LISTED_MODELS
    ]
    return _json({"object": "list", "data": data})
