"""Where the services are and who is calling: settings from the environment, or what `dev` left on this machine."""

import ipaddress
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

import typer

from controlplane.cli.output import fail

if TYPE_CHECKING:
    import grpc

DEFAULT_ADMIN_ADDRESS: Final = "127.0.0.1:50051"
DEFAULT_URL: Final = "http://127.0.0.1:8080"

_ADDRESS: Final = re.compile(
    r"(?P<host>[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\]):(?P<port>[0-9]{1,5})", re.ASCII
)


class Address(NamedTuple):
    """Where a control plane listens."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class AdminSettings:
    """Which control plane to call, and as whom."""

    address: Address
    token: str = field(repr=False)
    # The root that its certificate must come from; without it only a loopback address is called, in clear.
    ca_path: Path | None


@dataclass(frozen=True, slots=True)
class ClientSettings:
    """Which gateway to call, and with which key."""

    url: str
    api_key: str = field(repr=False)


@contextmanager
def admin_channel() -> "Iterator[grpc.Channel]":
    """Open a channel that authenticates each call, gives it 10 s unless told otherwise, and explains its failure.

    A refused or failed call inside the block becomes one line on stderr and exit code 1.
    """
    settings = admin_settings()
    # Loads gRPC, which takes longer than all the rest.
    from controlplane.cli.channel import open_channel

    with open_channel(settings) as channel:
        yield channel


def admin_settings() -> AdminSettings:
    """Return an administrator's settings.

    The address that stands beside a token is used with that token only: a token from the environment never goes to an
    address that some directory's file names.
    """
    address = setting("ADMIN_ADDRESS")
    token = setting("ADMIN_TOKEN")
    if token is None:
        left = dev_credentials()
        token = left.get("admin_token")
        address = address or left.get("admin_address")
    if token is None:
        fail(
            "no administrator's token: set TOLLKEEPER_ADMIN_TOKEN, or start `tollkeeper dev` in this directory"
        )
    if not re.fullmatch(r"[!-~]+", token, re.ASCII):
        raise typer.BadParameter("TOLLKEEPER_ADMIN_TOKEN holds characters that no token has")
    ca = setting("CA")
    return AdminSettings(
        address=_address(address or DEFAULT_ADMIN_ADDRESS),
        token=token,
        ca_path=Path(ca) if ca else None,
    )


def client_settings() -> ClientSettings:
    """Return a client's settings, found like an administrator's."""
    url = setting("URL")
    api_key = setting("API_KEY")
    if api_key is None:
        left = dev_credentials()
        api_key = left.get("api_key")
        url = url or left.get("base_url")
    if api_key is None:
        fail("no API key: set TOLLKEEPER_API_KEY, or start `tollkeeper dev` in this directory")
    if not re.fullmatch(r"[!-~]+", api_key, re.ASCII):
        raise typer.BadParameter("TOLLKEEPER_API_KEY holds characters that no key has")
    return ClientSettings(url=(url or DEFAULT_URL).rstrip("/"), api_key=api_key)


def setting(name: str) -> str | None:
    """Return `TOLLKEEPER_<name>`, or what the file `TOLLKEEPER_<name>_FILE` holds; None when neither is set."""
    value = os.environ.get(f"TOLLKEEPER_{name}")
    if value:
        return value
    path = os.environ.get(f"TOLLKEEPER_{name}_FILE")
    if not path:
        return None
    try:
        return Path(path).read_text(encoding="utf-8").strip() or None
    except (OSError, UnicodeDecodeError) as error:
        raise typer.BadParameter(
            f"TOLLKEEPER_{name}_FILE cannot be read: {type(error).__name__}"
        ) from None


def data_dir() -> Path:
    """Return the data directory: `TOLLKEEPER_DATA_DIR`, or `.tollkeeper` here."""
    return Path(os.environ.get("TOLLKEEPER_DATA_DIR") or ".tollkeeper")


def dev_credentials() -> dict[str, str]:
    """Return what `tollkeeper dev` wrote about itself in the data directory; nothing when it never ran there."""
    path = data_dir() / "credentials.json"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        fail(f"{path} cannot be read: {type(error).__name__}")
    if not isinstance(found, dict):
        fail(f"{path} does not hold credentials")
    return {name: value for name, value in found.items() if isinstance(value, str) and value}


def is_loopback(host: str) -> bool:
    """Return whether a host is this machine, by name or by address. Nothing is resolved."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _address(text: str) -> Address:
    match = _ADDRESS.fullmatch(text)
    if match is None or not 0 < int(match["port"]) < 65536:
        raise typer.BadParameter(
            f"TOLLKEEPER_ADMIN_ADDRESS must be host:port such as {DEFAULT_ADMIN_ADDRESS}"
        )
    return Address(host=match["host"].strip("[]"), port=int(match["port"]))
