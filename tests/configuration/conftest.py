"""A control plane of its own authority, as the tests of identity have it."""

import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.identity.control_planes import ControlPlane, running


@pytest.fixture
def data_dir(tmp_path: Path, sqlite_template: Path) -> Path:
    """A data directory with an empty database of the newest schema."""
    path = tmp_path / "controlplane"
    path.mkdir()
    shutil.copyfile(sqlite_template, path / "controlplane.sqlite")
    return path


@pytest.fixture
async def control_plane(data_dir: Path) -> AsyncIterator[ControlPlane]:
    async with running(data_dir) as started:
        yield started
