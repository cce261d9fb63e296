"""What `tollkeeper doctor` looks at on this machine: the environment, the profile, what `dev` left."""

import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from controlplane.cli.connection import data_dir
from controlplane.cli.findings import Finding, unwell, well
from controlplane.cli.profile import ProfileError, profile_path, read_profile

_OTHERS: Final = stat.S_IRWXG | stat.S_IRWXO
# What `dev` keeps to itself in its data directory.
_PRIVATE: Final = ("credentials.json", "secrets", "controlplane")


def environment_finding(environ: Iterable[str]) -> Finding:
    """Tell whether each name with our prefix is one that some program knows."""
    # Loads pydantic, which takes longer than all the rest of this look.
    from controlplane.settings import unknown_names

    unknown = unknown_names(environ)
    if unknown:
        return unwell(
            "environment",
            f"no program knows {', '.join(unknown)}",
            "correct the name or unset it: control planes and data planes do not start with it",
        )
    return well("environment", "every TOLLKEEPER_ name is known")


def profile_finding() -> Finding:
    """Tell whether the profile can be used, if there is one, and is its owner's alone."""
    try:
        path = profile_path()
        profile = read_profile()
        folder_mode = stat.S_IMODE(path.parent.stat().st_mode) if profile else 0
    except ProfileError as error:
        return unwell("profile", str(error), "put it right, or run `tollkeeper login`")
    except OSError as error:
        return unwell("profile", f"its folder cannot be read: {error.strerror}", "look at its mode")
    if profile is None:
        return well("profile", f"there is none at {path}")
    if folder_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return unwell(
            "profile",
            f"others can write to {path.parent}, and so replace the profile",
            f"run `chmod 700 {path.parent}`",
        )
    return well("profile", f"{path} is for {profile.url}")


def dev_directory_finding() -> Finding:
    """Tell whether what `tollkeeper dev` left here is its owner's alone."""
    folder = data_dir()
    try:
        exposed = _exposed(folder)
    except OSError as error:
        return unwell(
            "dev directory", f"{folder} cannot be read: {error.strerror}", "look at its owner"
        )
    if exposed:
        return unwell(
            "dev directory",
            f"others can read {', '.join(map(str, exposed))}",
            f"run `chmod -R go-rwx {folder}`",
        )
    if not folder.is_dir():
        return well("dev directory", f"there is none at {folder}")
    return well("dev directory", f"{folder} is its owner's alone")


def _exposed(folder: Path) -> list[Path]:
    """Return what of a data directory others can reach and read."""
    if not folder.is_dir() or not _is_open(folder):
        return []
    kept = [folder / name for name in _PRIVATE]
    return [path for path in kept if path.exists() and _is_open(path)]


def _is_open(path: Path) -> bool:
    return bool(stat.S_IMODE(path.stat().st_mode) & _OTHERS)
