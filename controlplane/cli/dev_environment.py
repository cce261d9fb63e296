"""Which of the user's own settings each program of the stack gets.

Every program refuses names that it does not know, so each is given its own and no other. What `dev` decides itself
(ports, secrets, directories, addresses) is not passed on.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

PREFIX: Final = "TOLLKEEPER_"

_LOG_SETTINGS: Final = frozenset({"LOG_LEVEL", "LOG_FORMAT", "LOG_PREFIX"})

CONTROLPLANE_SETTINGS: Final = _LOG_SETTINGS | {
    "DATABASE_URL",
    "MAX_REPLICAS",
    "DAILY_BUDGET_USD",
    "DAILY_REQUESTS",
    "DEFAULT_DAILY_REQUESTS",
    "DEFAULT_DAILY_TOKENS",
    "DEFAULT_MONTHLY_SPEND_CAP_USD",
    "UPGRADE_URL",
    "SUPPORT_URL",
    "KMS_KEY_ID",
    "AWS_REGION",
    "SLACK_BOT_TOKEN",
    "SLACK_CHANNEL",
    "ALERT_WEBHOOK_URL",
}

DATAPLANE_SETTINGS: Final = _LOG_SETTINGS | {
    "HOST",
    "REDIS_URL",
    "REDIS_MODE",
    "METRICS_PORT",
    "TRUSTED_PROXIES",
    "CORS_ORIGINS",
    "CLIENT_IP_HEADER",
}

_DECIDED_HERE: Final = frozenset(
    {
        "DATA_DIR",
        "PORT",
        "ADMIN_PORT",
        "NODE_PORT",
        "CONSOLE_PORT",
        "TLS",
        "TLS_CERT",
        "TLS_KEY",
        "TLS_CLIENT_CA",
        "CONTROL_PLANE",
        "NODE_ID",
        "NODE_KEY",
        "JOIN_TOKEN",
        "MASTER_KEY",
        "BOOTSTRAP_ADMIN_TOKEN",
        "PRIVATE_UPSTREAMS",
    }
)

# The client's, the administrator's and the tests': known everywhere, used by none of these programs.
_OF_OTHERS: Final = frozenset({"URL", "API_KEY", "ADMIN_ADDRESS", "ADMIN_TOKEN", "CA", "FIXTURES"})

# Keys of the user's accounts at real providers. Only `dev` itself reads them, to store them sealed in the control plane;
# what they pay for is nobody else's to see.
_VENDOR_KEYS: Final = frozenset({"OPENAI_API_KEY", "ANTHROPIC_API_KEY", "GEMINI_API_KEY"})

_KNOWN: Final = CONTROLPLANE_SETTINGS | DATAPLANE_SETTINGS | _DECIDED_HERE | _OF_OTHERS


def unknown_settings(environ: Iterable[str]) -> list[str]:
    """Return the names with our prefix that no program knows, sorted."""
    ours = (name for name in environ if name.startswith(PREFIX))
    return sorted(
        name
        for name in ours
        if _noun_of(name) not in _KNOWN and not name.startswith(f"{PREFIX}TEST_")
    )


def environment_of(
    environ: Mapping[str, str], passed_on: frozenset[str], decided: Mapping[str, str]
) -> dict[str, str]:
    """Return the environment of a program.

    Args:
        environ: The user's; what has not our prefix is passed on, but for the keys of real providers.
        passed_on: Names without prefix that the program takes from the user, also as `…_FILE`.
        decided: Names without prefix that `dev` sets.
    """
    environment = {
        name: value
        for name, value in environ.items()
        if name not in _VENDOR_KEYS and (not name.startswith(PREFIX) or _noun_of(name) in passed_on)
    }
    for name, value in decided.items():
        environment.pop(f"{PREFIX}{name}_FILE", None)
        environment[PREFIX + name] = value
    return environment


def value_of(environ: Mapping[str, str], name: str) -> str | None:
    """Return the user's setting `name`, given as text or by `…_FILE`, or None.

    Raises:
        OSError: The file cannot be read.
    """
    path = environ.get(f"{PREFIX}{name}_FILE")
    if path:
        return Path(path).read_text(encoding="utf-8").strip()
    return environ.get(PREFIX + name) or None


def _noun_of(name: str) -> str:
    return name.removeprefix(PREFIX).removesuffix("_FILE")
