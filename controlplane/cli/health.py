"""`tollkeeper health`: whether a data plane is ready, as an exit code."""

import http.client
from typing import Annotated, Final
from urllib.parse import urlsplit

import typer

from controlplane.cli.connection import DEFAULT_URL, setting
from controlplane.cli.output import fail, note

_PATIENCE_S: Final = 3.0


def health(
    url: Annotated[
        str | None, typer.Argument(help="The data plane; TOLLKEEPER_URL without it.")
    ] = None,
) -> None:
    """Ask a data plane whether it is ready: exit code 0 if it is, 1 if not. For container checks."""
    base = (url or setting("URL") or DEFAULT_URL).rstrip("/")
    # The standard library's client: a check that runs every few seconds should not load a large one.
    try:
        parts = urlsplit(base)
        port = parts.port
    except ValueError:
        raise typer.BadParameter("not a URL") from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise typer.BadParameter("a URL begins with http:// or https:// and names a host")
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = kind(parts.hostname, port, timeout=_PATIENCE_S)
    try:
        connection.request("GET", f"{parts.path}/health/ready")
        status = connection.getresponse().status
    except (OSError, http.client.HTTPException) as error:
        fail(f"cannot reach {parts.hostname}: {error}")
    finally:
        connection.close()
    if status != http.client.OK:
        fail(f"not ready: HTTP {status}")
    note("ready")
