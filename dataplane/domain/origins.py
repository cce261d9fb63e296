"""Origins of pages that may call the gateway from a browser."""

import re
from ipaddress import IPv6Address
from typing import Final

# Browsers leave these ports out of an origin.
_USUAL_PORTS: Final = {"http": "80", "https": "443"}
_MAX_PORT: Final = 65535
# Not only the web's schemes: an application that brings its own page has one of its own.
_ORIGIN: Final = re.compile(
    r"(?P<scheme>[a-z][a-z0-9+.-]*)://"
    r"(?P<host>[a-z0-9_-]+(?:\.[a-z0-9_-]+)*|\[(?P<literal>[0-9a-f:.]+)\])"
    r"(?::(?P<port>[1-9][0-9]{0,4}))?"
)
_FORM: Final = "must be scheme://host or scheme://host:port, with nothing after it"


def origin_of(text: str) -> str:
    """Return an origin as browsers send it: in lower case, without its scheme's usual port.

    Raises:
        ValueError: `text` is none, or not one only; the reason follows a noun ("must be …") and
            does not repeat it.
    """
    if text.lower() == "null":
        raise ValueError("must not be null: sandboxed pages of any site have that origin")
    if text == "*":
        raise ValueError("must not be *: it means every origin and stands alone")
    if "*" in text:
        raise ValueError("must not have a wildcard inside: write each origin out")
    parts = _ORIGIN.fullmatch(text.lower()) if text.isascii() else None
    if parts is None or int(parts["port"] or 0) > _MAX_PORT:
        raise ValueError(_FORM)
    scheme, host, port = parts["scheme"], parts["host"], parts["port"]
    if parts["literal"] is not None:
        host = _bracketed(parts["literal"])
    if port is None or port == _USUAL_PORTS.get(scheme):
        return f"{scheme}://{host}"
    return f"{scheme}://{host}:{port}"


def _bracketed(literal: str) -> str:
    try:
        return f"[{IPv6Address(literal).compressed}]"
    except ValueError:
        raise ValueError(_FORM) from None
