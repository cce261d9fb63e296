"""The profile of a client: which gateway it calls and with which credential, as `tollkeeper login` left it.

One file, `$XDG_CONFIG_HOME/tollkeeper/profile.json` (`~/.config` without that setting), of its owner alone. It is written
whole or not at all, and refused when others could have read it.
"""

import json
import os
import re
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, TypeAlias
from urllib.parse import urlsplit

from controlplane.cli.dev_secrets import private_directory, write_json

_TEXT: Final = re.compile(r"[!-~]{1,2048}", re.ASCII)
# A profile has some hundred bytes; whatever is longer is none.
_MOST_BYTES: Final = 65_536
_OTHERS: Final = stat.S_IRWXG | stat.S_IRWXO


class ProfileError(Exception):
    """The profile cannot be used; the text is a sentence for the user that says what to do, and holds no secret."""


@dataclass(frozen=True, slots=True)
class KeyCredential:
    """An API key."""

    api_key: str = field(repr=False)

    @property
    def headers(self) -> dict[str, str]:
        """The headers that present it."""
        return {"authorization": f"Bearer {self.api_key}"}


@dataclass(frozen=True, slots=True)
class DeviceCredential:
    """A registered device, approved or not."""

    device_id: str
    session_token: str = field(repr=False)

    @property
    def headers(self) -> dict[str, str]:
        """The headers that present it."""
        return {"x-device-id": self.device_id, "x-session-token": self.session_token}


ClientCredential: TypeAlias = KeyCredential | DeviceCredential


@dataclass(frozen=True, slots=True)
class Profile:
    """A gateway, without a final slash, and the credential that it gave."""

    url: str
    credential: ClientCredential


def profile_path() -> Path:
    """Return where the profile stands, or would stand.

    Raises:
        ProfileError: This user has no home directory.
    """
    configured = Path(os.environ.get("XDG_CONFIG_HOME", ""))
    if not configured.is_absolute():
        # So says the XDG base directory specification: a relative path is ignored.
        try:
            configured = Path.home() / ".config"
        except RuntimeError:
            raise ProfileError("there is no home directory: set XDG_CONFIG_HOME") from None
    return configured / "tollkeeper" / "profile.json"


def read_profile() -> Profile | None:
    """Return the profile; None when there is none. Fields that this program does not know are ignored.

    Raises:
        ProfileError: It cannot be read, others can read it, or it is not a profile.
    """
    path = profile_path()
    try:
        with path.open("rb") as file:
            # Of the file that is open, not of what may have taken its place.
            complaint = _complaint_about(os.fstat(file.fileno()), path)
            if complaint:
                raise ProfileError(complaint)
            text = file.read(_MOST_BYTES + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ProfileError(f"{path} cannot be read: {error.strerror}") from None
    return _profile_of(text, path)


def write_profile(profile: Profile) -> Path:
    """Replace the profile and return where it stands.

    Raises:
        ProfileError: It cannot be written; the former one is left as it was.
    """
    path = prepared_path()
    match profile.credential:
        case KeyCredential(api_key):
            fields = {"url": profile.url, "api_key": api_key}
        case DeviceCredential(device_id, session_token):
            fields = {
                "url": profile.url,
                "device_id": device_id,
                "session_token": session_token,
            }
    try:
        write_json(path, fields)
    except OSError as error:
        raise ProfileError(f"{path} cannot be written: {error.strerror}") from None
    return path


def prepared_path() -> Path:
    """Return where the profile stands, its folder made and its owner's alone.

    Raises:
        ProfileError: The folder cannot be made, or made private.
    """
    path = profile_path()
    try:
        folder = private_directory(path.parent)
        if stat.S_IMODE(folder.stat().st_mode) & _OTHERS:
            folder.chmod(0o700)
        if not os.access(folder, os.W_OK | os.X_OK):
            raise ProfileError(f"{folder} cannot be written to")
    except OSError as error:
        raise ProfileError(f"{path.parent} cannot be used: {error.strerror}") from None
    return path


def remove_profile() -> Profile | None:
    """Remove the profile and return what stood in it, as far as it was one; None when there was none to use.

    Raises:
        ProfileError: It cannot be removed.
    """
    try:
        profile = read_profile()
    except ProfileError:
        # It is to go, whatever is wrong with it.
        profile = None
    path = profile_path()
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise ProfileError(f"{path} cannot be removed: {error.strerror}") from None
    return profile


def _complaint_about(status: os.stat_result, path: Path) -> str | None:
    if not stat.S_ISREG(status.st_mode):
        return f"{path} is not a file"
    if status.st_uid != os.geteuid():
        return f"{path} belongs to another user: remove it and run `tollkeeper login`"
    if stat.S_IMODE(status.st_mode) & _OTHERS:
        return f"{path} can be read by others: run `chmod 600 {path}`"
    return None


def _profile_of(text: bytes, path: Path) -> Profile:
    try:
        if len(text) > _MOST_BYTES:
            raise ValueError("too long")
        return _parsed(json.loads(text))
    except (ValueError, RecursionError):
        raise ProfileError(f"{path} does not hold a profile: run `tollkeeper login`") from None


def _parsed(document: object) -> Profile:
    """Return the profile that a document is.

    Raises:
        ValueError: It is none.
    """
    match document:
        case {"url": str(url), "api_key": str(api_key)}:
            credential: ClientCredential = KeyCredential(_checked(api_key))
        case {"url": str(url), "device_id": str(device_id), "session_token": str(session_token)}:
            credential = DeviceCredential(_checked(device_id), _checked(session_token))
        case _:
            raise ValueError("fields are missing")
    return Profile(checked_url(url), credential)


def checked_url(url: str) -> str:
    """Return a gateway's URL without its final slash.

    Raises:
        ValueError: It is not http(s)://host[:port][/path]; it is not repeated, for it may hold a password.
    """
    if not _TEXT.fullmatch(url):
        raise ValueError("a URL is visible ASCII")
    parts = urlsplit(url)
    _ = parts.port  # Raises on a port that is none.
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("a URL must begin with http:// or https:// and name a host")
    if "@" in parts.netloc or "?" in url or "#" in url:
        raise ValueError("a gateway's URL has no credentials, no query and no fragment")
    return url.rstrip("/")


def _checked(text: str) -> str:
    if not _TEXT.fullmatch(text):
        raise ValueError("a credential is visible ASCII")
    return text
