"""How long revocations and changes took to reach each data plane, where somebody waited for them."""

from controlplane.domain.histograms import Buckets
from controlplane.domain.revocations import Propagation, Receipt
from controlplane.rpc.revocations import Revoker


class MeasuredRevoker:
    """A revoker that counts what the one behind it answers.

    A node that did not answer within the wait is counted in `missing_total`, not among the durations.
    """

    def __init__(self, revoker: Revoker) -> None:
        self._revoker = revoker
        self.revocation_seconds = Buckets()
        """From the commit of a revocation to a node's acknowledgement."""
        self.propagation_seconds = Buckets()
        """From the commit of any other change to a node's acknowledgement."""
        self.missing_total = 0
        """Live nodes that had not answered when a wait was over."""

    async def revoke(
        self,
        kind: int,
        subject_id: str,
        revision: int,
        *,
        organization_id: str = "",
        terminate_streams: bool,
        wait_ms: int,
    ) -> Receipt:
        """Revoke, and count the receipt's figures if anybody waited for it."""
        receipt = await self._revoker.revoke(
            kind,
            subject_id,
            revision,
            organization_id=organization_id,
            terminate_streams=terminate_streams,
            wait_ms=wait_ms,
        )
        if wait_ms > 0:
            self._count(self.revocation_seconds, receipt)
        return receipt

    async def propagated(self, revision: int, *, wait_ms: int) -> Propagation:
        """Wait, and count who has applied the change."""
        propagation = await self._revoker.propagated(revision, wait_ms=wait_ms)
        self._count(self.propagation_seconds, propagation)
        return propagation

    def _count(self, buckets: Buckets, answer: Receipt | Propagation) -> None:
        for applied in answer.applied:
            buckets.observe(applied.ms / 1000)
        self.missing_total += len(answer.missing)
