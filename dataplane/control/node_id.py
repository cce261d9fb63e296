"""The node's own name: made once, kept with its data."""

import secrets
from pathlib import Path
from typing import Final

_FILE: Final = "node-id"
_BYTES: Final = 6


def node_id_of(data_dir: Path) -> str:
    """Return the id that is kept in `data_dir`, made on the first call."""
    path = data_dir / _FILE
    try:
        return path.read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        node_id = f"node-{secrets.token_hex(_BYTES)}"
        path.write_text(node_id, encoding="utf-8")
        return node_id
