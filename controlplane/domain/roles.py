"""What administrators may do: role → permissions. Permissions are `<noun>.<verb>`, as the contract declares them."""

from enum import IntEnum
from typing import Final


class Role(IntEnum):
    """What an administrator may do, in the whole service; the numbers of the contract."""

    OWNER = 1
    ADMIN = 2
    OPERATOR = 3
    BILLING = 4
    AUDITOR = 5


NODE_NOUN: Final = "node"
"""Permissions of this noun belong to data planes alone, never to administrators."""

READABLE: Final = frozenset(
    {
        "administrators",
        "api_keys",
        "audit",
        "budgets",
        "configuration",
        "credentials",
        "devices",
        "limits",
        "nodes",
        "operations",
        "organizations",
        "prices",
        "providers",
        "routers",
        "tiers",
        "usage",
        "users",
    }
)
"""Every noun that can be read; every role reads all of them. Secrets cannot be read by anybody."""

_ALL_WRITABLE: Final = READABLE - {"audit", "budgets", "usage"}
_WRITABLE: Final = {
    Role.OWNER: _ALL_WRITABLE,
    Role.ADMIN: _ALL_WRITABLE - {"administrators"},
    Role.OPERATOR: frozenset({"users", "api_keys", "devices", "limits", "operations", "routers"}),
    Role.BILLING: frozenset({"limits", "prices", "tiers"}),
    Role.AUDITOR: frozenset[str](),
}


def may(role: Role, permission: str) -> bool:
    """Say whether `role` holds `permission`; what is not known is not held."""
    noun, _, verb = permission.partition(".")
    match verb:
        case "read":
            return noun in READABLE
        case "write":
            return noun in _WRITABLE[role]
        case _:
            return False


def is_for_nodes(permission: str) -> bool:
    """Say whether `permission` belongs to data planes."""
    return permission.partition(".")[0] == NODE_NOUN
