"""Calls and attempts made by hand."""

from dataclasses import replace
from typing import Any

from dataplane.domain.calls import Call, Dialect
from dataplane.http.codecs import anthropic, openai

_BODY = b'{"model":"m","max_tokens":50,"messages":[{"role":"user","content":"hello"}]}'


def call(dialect: Dialect, **changes: Any) -> Call:
    """Return a small call in `dialect`."""
    codec = openai if dialect is Dialect.OPENAI else anthropic
    plain: Call = codec.call_of("0" * 36, _BODY, {}, "")
    return replace(plain, **changes)
