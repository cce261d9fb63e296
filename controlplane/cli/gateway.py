"""Calls of a gateway by a client: one HTTP client, and sentences for all that may go wrong."""

import importlib.metadata
import json
import platform
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from controlplane.cli.connection import is_loopback
from controlplane.cli.lazy_modules import imported_on_use
from controlplane.cli.profile import ClientCredential, DeviceCredential

if TYPE_CHECKING:
    import httpx
    import httpx_sse
else:
    httpx = imported_on_use("httpx")
    httpx_sse = imported_on_use("httpx_sse")

_CONNECT_S: Final = 5.0
# Models that reason may be silent for minutes.
SILENCE_S: Final = 300.0
_FEW_REQUESTS: Final = 10
# What is left, and when it is more again; the first is a day's figure.
_REMAINING: Final = (
    ("x-ratelimit-remaining-device", "x-ratelimit-reset-device"),
    ("x-ratelimit-remaining-requests", "x-ratelimit-reset-requests"),
)
# Fields of a refusal's details that tell the user where to go.
_LINKS: Final = (("upgrade_url", "upgrade at"), ("support_url", "support:"))


class CallError(Exception):
    """A call was refused or failed; the text is one sentence for the user.

    Attributes:
        status: The HTTP status of a refusal; None when there was no answer.
        code: The refusal's code; None when the gateway did not name one.
        details: What the refusal says beside its message.
        retry_after_s: After how many seconds the gateway would like to be asked again; None when it did not say.
    """

    def __init__(
        self,
        sentence: str,
        *,
        status: int | None = None,
        code: str | None = None,
        details: Mapping[str, object] | None = None,
        retry_after_s: int | None = None,
    ) -> None:
        super().__init__(sentence)
        self.status = status
        self.code = code
        self.details = details or {}
        self.retry_after_s = retry_after_s


@contextmanager
def open_gateway(
    url: str, credential: ClientCredential | None, silence_s: float = SILENCE_S
) -> Iterator["httpx.Client"]:
    """Hold connections to a gateway open; what fails inside the block is a `CallError`.

    Args:
        url: Where it is, without a final slash.
        credential: What each call presents.
        silence_s: How long it may say nothing, in seconds.
    """
    headers = dict(credential.headers) if credential else {}
    if isinstance(credential, DeviceCredential):
        headers |= {"x-device-platform": this_platform(), "x-device-version": this_version()}
    client = httpx.Client(
        base_url=url,
        headers=headers,
        timeout=httpx.Timeout(silence_s, connect=min(silence_s, _CONNECT_S)),
        # A proxy of the environment is for the world outside.
        trust_env=not is_loopback(urlsplit(url).hostname or ""),
    )
    with client, explained(url):
        yield client


@contextmanager
def explained(url: str) -> Iterator[None]:
    """Turn what the HTTP client raises inside the block into a `CallError` about the gateway at `url`."""
    try:
        yield
    except httpx.TimeoutException:
        raise CallError(f"the gateway at {url} did not answer in time") from None
    except (httpx.TransportError, httpx.InvalidURL, httpx_sse.SSEError) as error:
        raise CallError(
            f"cannot talk to the gateway at {url} ({error}): "
            "is it running, and is TOLLKEEPER_URL or the profile right?"
        ) from None


def answered(response: "httpx.Response") -> object:
    """Return the JSON of an answer that must be good and whole; None when it is not JSON.

    Raises:
        CallError: It is a refusal.
    """
    if not response.is_success:
        raise refusal_of(response)
    return json_of(response.text)


def refusal_of(response: "httpx.Response") -> CallError:
    """Return what a response that was read refuses, with all that helps the user."""
    body = json_of(response.text)
    code = response.headers.get("x-tollkeeper-error")
    sentence = refusal_sentence(body, code) or f"refused: HTTP {response.status_code}"
    details = _details(body)
    retry_after = response.headers.get("retry-after", "")
    retry_after_s = int(retry_after) if retry_after.isascii() and retry_after.isdigit() else None
    hints = [f"try again in {retry_after_s} s"] if retry_after_s is not None else []
    hints += [f"{words} {details[name]}" for name, words in _LINKS if details.get(name)]
    return CallError(
        "; ".join((sentence, *hints)),
        status=response.status_code,
        code=code or _code_of(body),
        details=details,
        retry_after_s=retry_after_s,
    )


def refusal_sentence(body: object, code: str | None) -> str:
    """Return the sentence for a refusal; empty when the body does not say what was refused."""
    match body:
        case {"error": {"message": str(message), **rest}}:
            return (
                f"refused: {code or rest.get('code') or rest.get('type') or 'unknown'}: {message}"
            )
    return f"refused: {code}" if code else ""


def few_left(headers: Mapping[str, str]) -> str | None:
    """Return a warning when an answer says that fewer than 10 requests are left; None otherwise."""
    for remaining, reset in _REMAINING:
        left = headers.get(remaining, "")
        if left.isascii() and left.isdigit() and int(left) < _FEW_REQUESTS:
            requests = f"{int(left)} request{'' if int(left) == 1 else 's'} left"
            when = headers.get(reset, "")
            if not when:
                return f"warning: {requests}"
            # A day's figure ends at an instant, a minute's after a duration.
            word = "until" if when[:4].isdigit() and "T" in when else "for"
            return f"warning: {requests} {word} {when}"
    return None


def json_of(text: str) -> object:
    """Return a JSON text as a value; None when it is not JSON."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def this_platform() -> str:
    """Return the platform that this program runs on, as devices name it."""
    system = platform.system().lower()
    return {"darwin": "macos"}.get(system, system)[:64]


def this_version() -> str:
    """Return this program's version."""
    return importlib.metadata.version("tollkeeper")


def _details(body: object) -> Mapping[str, object]:
    match body:
        case {"error": {"details": {**details}}}:
            return {str(name): value for name, value in details.items()}
    return {}


def _code_of(body: object) -> str | None:
    match body:
        case {"error": {"code": str(code)}}:
            return code
    return None
