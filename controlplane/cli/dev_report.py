"""What `tollkeeper dev` tells its user once everything serves."""

import json
import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field


@dataclass(frozen=True, slots=True)
class Pids:
    """The processes of a stack at the moment when it became ready."""

    dev: int
    controlplane: int
    dataplanes: tuple[int, ...]
    # None when the user brought a Redis.
    redis: int | None
    mock: int


@dataclass(frozen=True, slots=True)
class Credentials:
    """Where a stack serves and what opens it; its fields are those of the JSON line."""

    base_urls: tuple[str, ...]
    admin_address: str
    mock_url: str
    pids: Pids
    api_key: str = field(repr=False)
    admin_token: str = field(repr=False)
    # It may hold a password.
    redis_url: str = field(repr=False)

    @property
    def base_url(self) -> str:
        """The first data plane."""
        return self.base_urls[0]

    def as_json(self) -> dict[str, object]:
        """Return the document that stands on the JSON line and in `credentials.json`."""
        return {
            "base_url": self.base_url,
            "base_urls": list(self.base_urls),
            "api_key": self.api_key,
            "admin_address": self.admin_address,
            "admin_token": self.admin_token,
            "console_url": None,
            "console_user": None,
            "console_password": None,
            "mock_url": self.mock_url,
            "redis_url": self.redis_url,
            "pids": {**asdict(self.pids), "dataplanes": list(self.pids.dataplanes)},
        }


def json_line(credentials: Credentials) -> str:
    """Return the one line of `--json`, without its newline."""
    return json.dumps(credentials.as_json(), separators=(",", ":"))


def summary(credentials: Credentials, data_dir: str) -> str:
    """Return what is printed without `--json`: addresses, credentials, and commands that can be pasted."""
    return "\n".join(
        (
            "Tollkeeper is ready.",
            "",
            *_aligned(
                (
                    *(("base URL", url) for url in credentials.base_urls),
                    ("API key", credentials.api_key),
                    ("admin address", credentials.admin_address),
                    ("admin token", credentials.admin_token),
                    ("mock provider", credentials.mock_url),
                    ("data directory", data_dir),
                )
            ),
            "",
            "Ask something:",
            "",
            f"  {curl(credentials)}",
            "",
            "Administer it with the command line:",
            "",
            f"  export TOLLKEEPER_ADMIN_ADDRESS={credentials.admin_address} "
            f"TOLLKEEPER_ADMIN_TOKEN={credentials.admin_token}",
            f"  export TOLLKEEPER_URL={credentials.base_url} "
            f"TOLLKEEPER_API_KEY={credentials.api_key}",
            "",
            "Ctrl-C stops everything.",
        )
    )


def curl(credentials: Credentials) -> str:
    """Return a command line that streams an answer of the mock provider through the first data plane."""
    body = {
        "model": "mock-echo",
        "stream": True,
        "messages": [{"role": "user", "content": "Hello from Tollkeeper"}],
    }
    return shlex.join(
        (
            *("curl", "-N", f"{credentials.base_url}/v1/chat/completions"),
            *("-H", f"Authorization: Bearer {credentials.api_key}"),
            *("-H", "content-type: application/json"),
            *("-d", json.dumps(body)),
        )
    )


def _aligned(rows: Sequence[tuple[str, str]]) -> list[str]:
    width = max(len(label) for label, _ in rows)
    return [f"  {label.ljust(width)}  {value}" for label, value in rows]
