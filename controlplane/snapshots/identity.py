"""Who a stream says it is, and what it may see."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import grpc.aio


@dataclass(frozen=True, slots=True)
class NodeIdentityClaim:
    """What is known of a stream's peer before it says anything.

    `node_id` comes from its certificate; None where nodes share a token and name themselves. `organization_ids` is its
    scope: what it is sent something of; empty means everything.
    """

    node_id: str | None = None
    organization_ids: frozenset[str] = frozenset()


Context: TypeAlias = grpc.aio.ServicerContext[
    Any, Any
]  # Any: messages of the call, of no interest here
Identify = Callable[[Context], NodeIdentityClaim]
"""Reads the claim of a call's peer. Called once for each stream, in its handler's task; must not block."""


def claims_nothing(_context: Context) -> NodeIdentityClaim:
    """Return the claim of a node that showed the shared token: it names itself, and sees everything."""
    return NodeIdentityClaim()
