"""What the dialects' decoders share: JSON to a struct, or a refusal that names the field."""

import re
from collections.abc import Iterable, Mapping
from typing import Final, TypeAlias, TypeVar

import msgspec

from dataplane.domain.calls import Call
from dataplane.domain.estimation import (
    TOKENS_FOR_TOOLS,
    TOKENS_PER_DOCUMENT,
    TOKENS_PER_IMAGE,
    TOKENS_PER_MESSAGE,
)
from dataplane.domain.refusals import Reason, Refusal
from dataplane.domain.usage import estimated_tokens
from dataplane.upstream.bodies import too_deep

T = TypeVar("T")
Fields: TypeAlias = dict[str, msgspec.Raw]
MAX_OUTPUT_TOKENS: Final = 10_000_000
MAX_CHOICES: Final = 128
MAX_MODEL_LENGTH: Final = 200
MAX_CLIENT_REQUEST_ID_LENGTH: Final = 128
# Names are spelled with letters, and these nobody escapes in good faith.
ESCAPED_LETTER: Final = re.compile(rb"\\u00[4-7]")
_FIELDS: Final = msgspec.json.Decoder(Fields)
_ESTIMATED_TOKENS_PER_MESSAGE: Final = 4
DEFAULT_TIMEOUT_SECONDS: Final = 600.0
# Only looked at once a request is refused: `… - at `$.messages[0].role``.
_PATH_IN_ERROR: Final = re.compile(r"at `\$\.?([^`]*)`")
_TOOL_FIELDS: Final = (b'"tools"', b'"functions"')
_MISSING_IN_ERROR: Final = re.compile(r"missing required field `([^`]*)`")


class Media:
    """Adds up, over the parts of a request, what bytes of text cannot tell."""

    __slots__ = ("payload_bytes", "text_bytes", "tokens")

    def __init__(self) -> None:
        self.text_bytes = 0
        self.payload_bytes = 0
        self.tokens = 0

    def add_text(self, text: str | None) -> None:
        """Count a text that the model reads."""
        if text:
            self.text_bytes += len(text) if text.isascii() else len(text.encode("utf-8", "replace"))

    def add_image(self, payload: str = "") -> None:
        """Count a picture; `payload` is its base64, which is no text."""
        self.tokens += TOKENS_PER_IMAGE
        self.payload_bytes += len(payload)

    def add_document(self, payload: str = "") -> None:
        """Count a document or another file."""
        self.tokens += TOKENS_PER_DOCUMENT
        self.payload_bytes += len(payload)

    def upper_tokens(self, body: bytes, messages: int) -> int:
        """Return the most input tokens that `body` can be."""
        tools = TOKENS_FOR_TOOLS if any(name in body for name in _TOOL_FIELDS) else 0
        texts = len(body) - self.payload_bytes + messages * TOKENS_PER_MESSAGE
        return texts + tools + self.tokens

    def estimated_tokens(self, messages: int) -> int:
        """Return about how many input tokens it is."""
        texts = estimated_tokens(self.text_bytes)
        return texts + messages * _ESTIMATED_TOKENS_PER_MESSAGE + self.tokens // 16


def decoded(decoder: msgspec.json.Decoder[T], body: bytes, within: str = "") -> T:
    """Return `body` as the decoder's type; `within` is the field that it is the value of.

    Raises:
        Refusal: INVALID_REQUEST, naming the field where one is to blame.
    """
    try:
        if not body.isascii():
            # The decoder skips fields that it does not know without looking at their characters.
            body.decode("utf-8")
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        raise _wrong_field(str(error), within) from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Refusal(Reason.INVALID_REQUEST, "The body is not valid JSON.") from error
    except RecursionError as error:
        raise too_deep() from error


def check_call(call: Call) -> None:
    """Refuse figures that no provider takes.

    Raises:
        Refusal: INVALID_REQUEST, naming the field.
    """
    if not 0 < len(call.model) <= MAX_MODEL_LENGTH or not call.model.isprintable():
        raise invalid("model", "It is empty, too long or not printable.")
    if not 0 < call.choices <= MAX_CHOICES:
        raise invalid("n", f"It is between 1 and {MAX_CHOICES}.")


def checked_cap(name: str, cap_tokens: int) -> int:
    """Return an output cap that the caller gave in the field `name`.

    Each is checked, not only the one that counts: to some providers a negative cap means none.

    Raises:
        Refusal: INVALID_REQUEST, naming the field.
    """
    if not 0 < cap_tokens <= MAX_OUTPUT_TOKENS:
        raise invalid(name, f"It is between 1 and {MAX_OUTPUT_TOKENS}.")
    return cap_tokens


def has_duplicates(body: bytes, names: Iterable[str], given: frozenset[str]) -> bool:
    r"""Return whether a name that the gateway reads may stand in the object `body` more than once.

    A quote inside of a JSON string is escaped, so only names are counted; those of nested
    objects are counted too, which costs a rewrite and changes nothing. A name may also be
    written with escapes, such as `\u006dodel`; nobody escapes plain letters in good faith.
    """
    try:
        fields = _FIELDS.decode(body)
    except RecursionError:
        return True  # which the rewrite refuses
    if is_plain(body, fields):
        return False
    if b"\\u00" in body and ESCAPED_LETTER.search(body) is not None:
        return True
    return any(body.count(b'"%b"' % name.encode()) > (name in given) for name in names)


def is_plain(text: bytes, fields: Fields) -> bool:
    """Return whether the object `text` holds `fields`, as they were read from it, and nothing else.

    That is: no name twice nor with escapes, and between them no white space or, as some encoders
    have it, one space after each comma and colon. Nearly all bodies are, and it takes a tenth of the
    time that counting names takes: without spaces, whatever else there was would make `text` longer.
    """
    length = 1 + sum(len(name) + 4 + len(bytes(value)) for name, value in fields.items())
    if len(text) == length:
        return True
    if len(text) != length + 2 * len(fields) - 1:
        return False
    parts = [b'"%b": %b' % (name.encode(), value) for name, value in fields.items()]
    return text == b"{%b}" % b", ".join(parts)


def client_request_id(headers: Mapping[str, str]) -> str:
    """Return the caller's own request id, if it is one that can be shown and kept."""
    text = headers.get("x-request-id", "")
    return text if len(text) <= MAX_CLIENT_REQUEST_ID_LENGTH and is_visible(text) else ""


def is_visible(text: str) -> bool:
    """Return whether `text` is of visible ASCII characters and spaces, as a header may hold."""
    return text.isascii() and text.isprintable()


def timeout_seconds(headers: Mapping[str, str]) -> float:
    """Return how long the caller waits for the head of an answer; it can only shorten.

    Raises:
        Refusal: INVALID_REQUEST when `x-tollkeeper-timeout` is no positive number.
    """
    text = headers.get("x-tollkeeper-timeout")
    if text is None:
        return DEFAULT_TIMEOUT_SECONDS
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not seconds > 0:
        raise invalid("x-tollkeeper-timeout", "It is a positive number of seconds.")
    return min(seconds, DEFAULT_TIMEOUT_SECONDS)


def invalid(param: str, why: str) -> Refusal:
    """Return a refusal that blames one field."""
    return Refusal(Reason.INVALID_REQUEST, f"The field {param} is not valid. {why}", param=param)


def _wrong_field(text: str, within: str) -> Refusal:
    missing = _MISSING_IN_ERROR.search(text)
    path = _PATH_IN_ERROR.search(text)
    parts = [within, *(match.group(1) for match in (path, missing) if match)]
    param = ".".join(part for part in parts if part)
    if not param:
        return Refusal(Reason.INVALID_REQUEST, "The body is not a JSON object of this API.")
    if missing:
        return Refusal(Reason.INVALID_REQUEST, f"The field {param} is missing.", param=param)
    return Refusal(Reason.INVALID_REQUEST, f"The field {param} is of the wrong type.", param=param)
