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
    base = url or setting("URL") or DEFAULT_URL
    try:
        status = readiness(base, _PATIENCE_S)
    except (OSError, http.client.HTTPException) as error:
        fail(f"cannot reach {urlsplit(base).hostname}: {error}")
    if status != http.client.OK:
        fail(f"not ready: HTTP {status}")
    note("ready")


def readiness(url: str, patience_s: float) -> int:
    """Return the HTTP status with which a data plane says whether it is ready; each step may take `patience_s`.

    Raises:
        BadParameter: Not a URL, which is wrong usage.
        OSError: It cannot be reached, or does not answer in time.
        HTTPException: What answers does not speak HTTP.
    """
    # The standard library's client: a check that runs every few seconds should not load a large one.
    try:
        parts = urlsplit(url.rstrip("/"))
        port = parts.port
    except ValueError:
        raise typer.BadParameter("not a URL") from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise typer.BadParameter("a URL begins with http:// or https:// and names a host")
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = kind(parts.hostname, port, timeout=patience_s)
    try:
        connection.request("GET", f"{parts.path}/health/ready")
        return connection.getresponse().status
    finally:
        connection.close()
