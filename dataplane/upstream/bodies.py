"""Request bodies that pass through but for the few fields that the gateway sets."""

from collections.abc import Mapping

import msgspec

from dataplane.domain.refusals import Reason, Refusal

_DECODER = msgspec.json.Decoder(dict[str, msgspec.Raw])


def with_fields(body: bytes, given: frozenset[str], fields: Mapping[str, bytes]) -> bytes:
    """Return the JSON object `body` with `fields` (name → JSON) set at its top level.

    Fields that the caller did not give are appended; the rest of the bytes stays as it was. Only
    where one is replaced the top level is written anew, each other value byte for byte.

    Raises:
        Refusal: INVALID_REQUEST when `body` is nested too deeply to be read from here.
    """
    if not fields:
        return body
    if given.isdisjoint(fields):
        added = b",".join(b'"%b":%b' % (name.encode(), value) for name, value in fields.items())
        head = body[: body.rindex(b"}")]
        return b"%b%b%b}" % (head, b"" if head.strip() == b"{" else b",", added)
    parsed = _parsed(body)
    parsed.update({name: msgspec.Raw(value) for name, value in fields.items()})
    return msgspec.json.encode(parsed)


def without_duplicates(body: bytes) -> bytes:
    """Return the JSON object `body` with each top-level name once, the last one, as parsers read it.

    Parsers differ on which of two equal names counts; what was checked must be what is sent.

    Raises:
        Refusal: INVALID_REQUEST when `body` is nested too deeply to be read from here.
    """
    return msgspec.json.encode(_parsed(body))


def gives(body: bytes, name: str) -> bool:
    """Return whether the JSON object `body` has `name` at its top level, and not as null.

    Raises:
        Refusal: INVALID_REQUEST when `body` is nested too deeply to be read from here.
    """
    value = _parsed(body).get(name)
    return value is not None and bytes(value) != b"null"


def too_deep() -> Refusal:
    """Return the refusal of a body whose nesting is beyond what can be read."""
    return Refusal(Reason.INVALID_REQUEST, "The body is nested too deeply.")


def _parsed(body: bytes) -> dict[str, msgspec.Raw]:
    try:
        return _DECODER.decode(body)
    except RecursionError as error:
        # How deep one may read depends on how deep the reader's own calls already are.
        raise too_deep() from error
