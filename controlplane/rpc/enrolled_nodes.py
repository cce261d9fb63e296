"""Nodes that joined, for administrators: who they are, and who may be one no longer."""

from collections.abc import Callable

from tollkeeper.admin.v1 import node_service_pb2 as pb

from controlplane.domain.errors import NotFoundError
from controlplane.rpc.changing import changing
from controlplane.rpc.interception import Context
from controlplane.rpc.join_tokens import JoinTokenMethods, names_of, organization_names
from controlplane.rpc.node_admission import NodeProof
from controlplane.rpc.redaction import audited
from controlplane.rpc.resources import to_timestamp
from controlplane.store.fleet_tables import NodeCertificate
from controlplane.store.nodes import Nodes
from controlplane.store.repositories import Repositories
from controlplane.store.tables import NodeIdentity
from controlplane.store.transactions import Transaction


class EnrolledNodes(JoinTokenMethods):
    """The methods of NodeService that are about who may be a node; the rest of the service builds on this class."""

    async def ListEnrolledNodes(
        self, _request: pb.ListEnrolledNodesRequest, _context: Context
    ) -> pb.ListEnrolledNodesResponse:
        """Return the nodes that joined or are banned, by node id."""
        async with self.backend.store.reading() as session:
            nodes = Nodes(session)
            rows = await nodes.all()
            certificates = await nodes.certificates()
            names = await organization_names(
                Repositories(session), (row.organization_ids for row in rows)
            )
        return pb.ListEnrolledNodesResponse(
            nodes=[
                _node_to_proto(row, certificates.get(row.id), names_of(row.organization_ids, names))
                for row in rows
            ]
        )

    @changing(pb.BanNodeResponse)
    async def BanNode(
        self, tx: Transaction, request: pb.BanNodeRequest
    ) -> Callable[[], pb.BanNodeResponse]:
        """Refuse a node for good, and name what it may know."""
        tx.describe(request.node_id, audited(request))
        tx.after_commit(self.joining.look_again)
        nodes = Nodes(tx.session)
        row = await nodes.find_for_change(request.node_id)
        if row is None and self.joining.proof is NodeProof.OWN_AUTHORITY:
            # Who never joined has had no stream.
            received = []
        else:
            received = await nodes.received_credentials(row)
        if row is None:
            row = NodeIdentity(id=request.node_id, created_at=tx.now, updated_at=tx.now)
            tx.add(row)
        row.banned_at = row.banned_at or tx.now
        row.ban_reason = request.reason
        return lambda: pb.BanNodeResponse(revision=tx.revision, received_credentials=received)

    @changing(pb.UnbanNodeResponse)
    async def UnbanNode(
        self, tx: Transaction, request: pb.UnbanNodeRequest
    ) -> Callable[[], pb.UnbanNodeResponse]:
        """Forget a banned node, so that it may join as a new one; its former certificate stays useless."""
        tx.describe(request.node_id, audited(request))
        tx.after_commit(self.joining.look_again)
        nodes = Nodes(tx.session)
        row = await nodes.find_for_change(request.node_id)
        if row is None or row.banned_at is None:
            raise NotFoundError(f"node {request.node_id} is not banned", field="node_id")
        await nodes.forget_certificate(request.node_id)
        await tx.delete(row)
        return lambda: pb.UnbanNodeResponse(revision=tx.revision)


def _node_to_proto(
    row: NodeIdentity, certificate: NodeCertificate | None, organizations: list[str]
) -> pb.EnrolledNode:
    return pb.EnrolledNode(
        node_id=row.id,
        enrolled_at=to_timestamp(row.enrolled_at) if row.enrolled_at else None,
        certificate_expires_at=to_timestamp(certificate.expires_at) if certificate else None,
        organizations=organizations,
        banned_at=to_timestamp(row.banned_at) if row.banned_at else None,
        ban_reason=row.ban_reason,
    )
