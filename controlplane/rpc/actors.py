"""Who calls: known after authorization, for the length of one call."""

from contextvars import ContextVar
from dataclasses import dataclass
from typing import Final

from controlplane.domain.roles import Role
from controlplane.pki.certificates import NodeName


@dataclass(frozen=True, slots=True)
class Actor:
    """An administrator with a role, or a data plane (`role` is None). `name` is what the audit shows.

    `node` is what a data plane's certificate says; None where they share a token.
    """

    name: str
    role: Role | None = None
    node: NodeName | None = None


NODE: Final = Actor("node")
"""Any data plane where they share one token: they name themselves in what they say."""

_current: ContextVar[Actor] = ContextVar("tollkeeper_actor")


def enter(actor: Actor) -> None:
    """Make `actor` the caller of the call that runs in this task."""
    _current.set(actor)


def current_actor() -> Actor:
    """Return who makes the call that runs in this task.

    Raises:
        LookupError: The call was not authorized; a servicer without the interceptor must fail.
    """
    return _current.get()
