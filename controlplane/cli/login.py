"""`tollkeeper login` and `logout`: the profile that a client's commands use."""

import os
import socket
import sys
from datetime import timedelta
from typing import Annotated, Final
from urllib.parse import urlsplit

import typer

from controlplane.cli.connection import DEFAULT_URL, is_loopback, setting
from controlplane.cli.device_login import DeviceLogin, approval_command
from controlplane.cli.durations import duration_from_text
from controlplane.cli.gateway import CallError, answered, open_gateway
from controlplane.cli.options import Output
from controlplane.cli.output import Format, fail, note, print_one
from controlplane.cli.plain import Record
from controlplane.cli.profile import (
    DeviceCredential,
    KeyCredential,
    Profile,
    ProfileError,
    checked_url,
    profile_path,
    read_profile,
    remove_profile,
    write_profile,
)
from controlplane.cli.secret_input import secret_from_stdin
from controlplane.cli.typer_apps import reader

# What a person who approves devices all day may take; longer waits are for a second command.
_DEFAULT_WAIT: Final = timedelta(minutes=10)
_LONGEST_WAIT: Final = timedelta(days=7)
_MOST_NAME_CHARACTERS: Final = 100
# A list of models is one look at the configuration.
_PATIENCE_S: Final = 10.0


def _wait(text: str) -> timedelta:
    wait = duration_from_text(text)
    if wait > _LONGEST_WAIT:
        raise ValueError(f"{text!r} is longer than 7d")
    return wait


def login(
    url: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="The gateway; without it TOLLKEEPER_URL, then that of the profile.",
            show_default=False,
        ),
    ] = None,
    api_key_stdin: Annotated[
        bool,
        typer.Option("--api-key-stdin", help="Read the API key from stdin; else it is asked for."),
    ] = False,
    device: Annotated[
        bool, typer.Option("--device", help="Register this machine as a device, without a key.")
    ] = False,
    name: Annotated[
        str | None,
        typer.Option(
            help="What the device is called; the host's name without it.", show_default=False
        ),
    ] = None,
    wait: Annotated[
        timedelta | None,
        typer.Option(
            parser=reader(_wait),
            metavar="TIME",
            help="How long to wait for approval; 10m without it.",
            show_default=False,
        ),
    ] = None,
    no_wait: Annotated[bool, typer.Option("--no-wait", help="Do not wait for approval.")] = False,
    output: Output = Format.TABLE,
) -> None:
    """Check a credential against the gateway and keep it in the profile.

    With --device this machine asks for a credential of its own: an operator approves it, and this
    command waits until that has happened.
    """
    if device and api_key_stdin:
        raise typer.BadParameter("a device has no key: give --device or --api-key-stdin")
    if not device and (name is not None or wait is not None or no_wait):
        raise typer.BadParameter("--name, --wait and --no-wait belong to --device")
    if wait is not None and no_wait:
        raise typer.BadParameter("give --wait or --no-wait")
    try:
        gateway_url = _url(url)
        _warn_if_in_clear(gateway_url)
        if device:
            patience = timedelta(0) if no_wait else wait or _DEFAULT_WAIT
            _log_device_in(gateway_url, _device_name(name), patience, output)
        else:
            _log_key_in(gateway_url, api_key_stdin, output)
    except (CallError, ProfileError) as error:
        fail(str(error))


def logout() -> None:
    """Remove the profile. What it held stays valid at the gateway until somebody revokes it."""
    try:
        profile = remove_profile()
        path = profile_path()
    except ProfileError as error:
        fail(str(error))
    note(f"there is no profile at {path} any more")
    if profile is not None and isinstance(profile.credential, DeviceCredential):
        note(
            f"the device {profile.credential.device_id} is still registered: "
            f"an operator ends it with `tollkeeper device revoke {profile.credential.device_id}`"
        )


def _url(given: str | None) -> str:
    """Return the gateway's URL.

    Raises:
        BadParameter: It is not one.
    """
    text = given or setting("URL") or _known_url() or DEFAULT_URL
    try:
        return checked_url(text)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--url") from None


def _known_url() -> str | None:
    try:
        profile = read_profile()
    except ProfileError:
        # It is about to be replaced, and then will be what it should be.
        return None
    return profile.url if profile else None


def _warn_if_in_clear(url: str) -> None:
    parts = urlsplit(url)
    if parts.scheme == "http" and not is_loopback(parts.hostname or ""):
        note(f"warning: credentials travel in clear to {url}: use https:// if it has it")


def _log_key_in(url: str, from_stdin: bool, output: Format) -> None:
    if not from_stdin and not sys.stdin.isatty():
        raise typer.BadParameter("stdin is not a terminal: pipe the key in with --api-key-stdin")
    credential = KeyCredential(secret_from_stdin("--api-key-stdin", "API key: "))
    with open_gateway(url, credential, _PATIENCE_S) as client:
        listing = answered(client.get("/v1/models"))
    match listing:
        case {"data": [*models]}:
            path = write_profile(Profile(url, credential))
        case _:
            fail(f"what answers at {url} is not a gateway: nothing was kept")
    note("logged in")
    print_one(
        {"url": url, "credential": "api_key", "models": len(models), "profile": str(path)}, output
    )


def _device_name(given: str | None) -> str:
    name = (given if given is not None else socket.gethostname()).strip()
    if given is not None and not 0 < len(name) <= _MOST_NAME_CHARACTERS:
        raise typer.BadParameter(
            f"a device's name has 1 to {_MOST_NAME_CHARACTERS} characters", param_hint="--name"
        )
    return name[:_MOST_NAME_CHARACTERS] or os.name


def _log_device_in(url: str, name: str, patience: timedelta, output: Format) -> None:
    device_login = DeviceLogin(url)
    registered = device_login.register(name)
    state = registered.state
    note(f"this machine is the device {state.device_id}{'' if registered.is_new else ' already'}")
    if state.is_pending:
        note(f"an operator approves it with `{approval_command(state.device_id)}`")
        if patience:
            note("waiting for approval; Ctrl-C ends the wait, not the registration")
    if patience or not registered.is_new:
        state = device_login.look_until_decided(registered.credential, patience.total_seconds())
    record: Record = {
        "url": url,
        "credential": "device",
        **state.record(),
        "profile": str(profile_path()),
    }
    print_one(record, output)
    note(state.sentence())
    is_as_wanted = state.is_approved or (state.is_pending and not patience)
    if not is_as_wanted:
        raise typer.Exit(1)
