"""Where the services are and who is calling.

An administrator's settings come from the environment, or from what `dev` left on this machine. A client's come from the
environment, then from the profile that `tollkeeper login` wrote, then from what `dev` left.
"""

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
from controlplane.cli.profile import (
    ClientCredential,
    KeyCredential,
    Profile,
    ProfileError,
    checked_url,
    read_profile,
)

if TYPE_CHECKING:
    import grpc

DEFAULT_ADMIN_ADDRESS: Final = "127.0.0.1:50051"
DEFAULT_URL: Final = "http://127.0.0.1:8080"

_DEV_CREDENTIALS: Final = "credentials.json"
_VISIBLE: Final = re.compile(r"[!-~]+", re.ASCII)
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
    """Which gateway to call, and with which credential."""

    url: str
    credential: ClientCredential
    # What said so, for people: `the environment`, or a file.
    source: str


class SetUpError(Exception):
    """Something that is needed is not set up; the text is a sentence for the user and holds no secret."""


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
    """Return an administrator's settings; without them the program ends with exit code 1."""
    try:
        return find_admin_settings()
    except SetUpError as error:
        fail(str(error))


def find_admin_settings() -> AdminSettings:
    """Return an administrator's settings.

    The address that stands beside a token is used with that token only: a token from the environment never goes to an
    address that some directory's file names.

    Raises:
        SetUpError: There is no token, or what `dev` left cannot be read.
        BadParameter: A setting is not what it should be.
    """
    address = setting("ADMIN_ADDRESS")
    token = setting("ADMIN_TOKEN")
    if token is None:
        left = dev_credentials()
        token = left.get("admin_token")
        address = address or left.get("admin_address")
    if token is None:
        raise SetUpError(
            "no administrator's token: set TOLLKEEPER_ADMIN_TOKEN, or start `tollkeeper dev` in this directory"
        )
    if not _VISIBLE.fullmatch(token):
        raise typer.BadParameter("TOLLKEEPER_ADMIN_TOKEN holds characters that no token has")
    ca = setting("CA")
    return AdminSettings(
        address=_address(address or DEFAULT_ADMIN_ADDRESS),
        token=token,
        ca_path=Path(ca) if ca else None,
    )


def client_settings(given_key: str | None = None) -> ClientSettings:
    """Return a client's settings; without them the program ends with exit code 1."""
    try:
        return find_client_settings(given_key)
    except SetUpError as error:
        fail(str(error))


def find_client_settings(given_key: str | None = None) -> ClientSettings:
    """Return a client's settings.

    The profile is the user's own, so the environment may replace its URL, its credential or both. A key from elsewhere
    never goes to an address that some directory's file names, as an administrator's token does not.

    Args:
        given_key: A key that takes the place of each other credential, as the environment's does.

    Raises:
        SetUpError: There is no credential, or the file that may hold one cannot be used.
        BadParameter: A setting is not what it should be.
    """
    url, api_key = setting("URL"), given_key or setting("API_KEY")
    if api_key is not None and not _VISIBLE.fullmatch(api_key):
        raise typer.BadParameter("TOLLKEEPER_API_KEY holds characters that no key has")
    credential: ClientCredential | None = KeyCredential(api_key) if api_key else None
    source = "the environment"
    if url is None or credential is None:
        profile = _profile()
        if profile is not None:
            source = source if credential else "the profile"
            url, credential = url or profile.url, credential or profile.credential
    if credential is None:
        left, source = dev_credentials(), str(data_dir() / _DEV_CREDENTIALS)
        if "api_key" not in left:
            raise SetUpError(
                "no credential: set TOLLKEEPER_API_KEY, run `tollkeeper login`, "
                "or start `tollkeeper dev` in this directory"
            )
        url, credential = url or left.get("base_url"), KeyCredential(left["api_key"])
    try:
        return ClientSettings(checked_url(url or DEFAULT_URL), credential, source)
    except ValueError as error:
        raise typer.BadParameter(f"TOLLKEEPER_URL: {error}") from None


def _profile() -> Profile | None:
    try:
        return read_profile()
    except ProfileError as error:
        raise SetUpError(str(error)) from None


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
    """Return what `tollkeeper dev` wrote about itself in the data directory; nothing when it never ran there.

    Raises:
        SetUpError: The file cannot be read.
    """
    path = data_dir() / _DEV_CREDENTIALS
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise SetUpError(f"{path} cannot be read: {type(error).__name__}") from None
    if not isinstance(found, dict):
        raise SetUpError(f"{path} does not hold credentials")
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
