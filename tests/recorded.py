"""Recorded exchanges with providers, read from the folder of shared fixtures.

The folder is named by TOLLKEEPER_FIXTURES or stands beside the project; it is not part of it.
Where it is missing, tests over recordings have no cases.
"""

import json
import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

_BESIDE = Path(__file__).resolve().parents[2] / "shared" / "fixtures"


def folder() -> Path:
    """Return where the recordings are, or would be."""
    return Path(os.environ.get("TOLLKEEPER_FIXTURES") or _BESIDE)


@cache
def _all() -> tuple[dict[str, Any], ...]:
    files = sorted((folder() / "providers").glob("*/*.json"))
    return tuple(json.loads(file.read_text()) for file in files)


def exchanges(endpoint: str) -> Iterator[dict[str, Any]]:
    """Yield the exchanges with one endpoint: `chat.completions`, `messages`."""
    return (each for each in _all() if each["endpoint"] == endpoint)
