"""Revocations as the servicers see them: something takes them to the data planes and says who obeys."""

from typing import Protocol

from controlplane.domain.revocations import AppliedRevocation, Receipt

__all__ = ["AppliedRevocation", "Receipt", "Revoker"]


class Revoker(Protocol):
    """Takes revocations to the data planes."""

    async def revoke(
        self,
        kind: int,
        subject_id: str,
        revision: int,
        *,
        terminate_streams: bool,
        wait_ms: int,
    ) -> Receipt:
        """Tell every live node that a subject is refused, and wait for the nodes to say so.

        Called after the commit, so a failure here does not undo anything; nodes that are not reached learn of it from
        the configuration. Repeating it is harmless.

        Args:
            kind: What is revoked: a number of `config.v1.ResourceKind` (organization, user, API key or device).
            subject_id: Its resource id.
            revision: The committed change that made it so.
            terminate_streams: End its streams in flight too.
            wait_ms: How long to wait for the nodes, at most; 0 returns at once.
        """
        ...
