"""Credentials: secrets at providers, which go in and never come out."""

from collections.abc import Callable

from tollkeeper.admin.v1 import changes_pb2, credential_service_pb2_grpc
from tollkeeper.admin.v1 import credential_service_pb2 as pb

from controlplane.domain.names import new_id, parent_of
from controlplane.rpc.changing import AdminServicer, changing
from controlplane.rpc.deleting import delete_row
from controlplane.rpc.interception import Context
from controlplane.rpc.pages import page_of
from controlplane.rpc.resources import check_etag, stamps_of
from controlplane.secrets.sealing import Secret
from controlplane.store.repositories import Repositories
from controlplane.store.tables import Credential
from controlplane.store.transactions import Transaction


def credential_to_proto(row: Credential) -> pb.Credential:
    """Return a row as the admin API shows it."""
    return pb.Credential(
        name=row.name,
        version=row.version,
        fingerprint=row.fingerprint.hex(),
        **stamps_of(row),
    )


class CredentialServicer(AdminServicer, credential_service_pb2_grpc.CredentialServiceServicer):
    """Serves CredentialService."""

    @changing(pb.Credential)
    async def CreateCredential(
        self, tx: Transaction, request: pb.CreateCredentialRequest
    ) -> Callable[[], pb.Credential]:
        """Add a credential to a provider, behind the ones that it has."""
        name = request.credential.name
        provider = await tx.providers.get_for_change(parent_of(name), field="credential.name")
        credential_id, secret = new_id(self.backend.random_below), Secret(request.secret.encode())
        row = Credential(
            id=credential_id,
            name=name,
            provider_id=provider.id,
            version=1,
            sealed_secret=self.backend.sealer.seal(credential_id, 1, secret),
            fingerprint=secret.fingerprint,
            created_at=tx.now,
            updated_at=tx.now,
        )
        await tx.credentials.add(row)
        tx.touch(provider)
        return lambda: credential_to_proto(row)

    async def GetCredential(
        self, request: pb.GetCredentialRequest, _context: Context
    ) -> pb.Credential:
        """Return a credential, without its secret."""
        async with self.backend.store.reading() as session:
            return credential_to_proto(await Repositories(session).credentials.get(request.name))

    async def ListCredentials(
        self, request: pb.ListCredentialsRequest, _context: Context
    ) -> pb.ListCredentialsResponse:
        """Return a page of credentials."""
        page = page_of(request)
        async with self.backend.store.reading() as session:
            repositories = Repositories(session)
            provider_id = None
            if request.provider:
                found = await repositories.providers.get(request.provider, field="provider")
                provider_id = found.id
            rows = await repositories.credentials.page(
                after=page.after_name, size=page.fetch, provider_id=provider_id
            )
        return pb.ListCredentialsResponse(
            credentials=map(credential_to_proto, page.cut(rows)),
            next_page_token=page.next_token(rows, "name"),
        )

    @changing(changes_pb2.DeleteResult)
    async def DeleteCredential(
        self, tx: Transaction, request: pb.DeleteCredentialRequest
    ) -> Callable[[], changes_pb2.DeleteResult]:
        """Remove a credential from its provider."""
        row = await tx.credentials.get_for_change(request.name)
        check_etag(row, request)
        return await delete_row(tx, self.backend.revoker, row, force=request.force)

    @changing(pb.Credential)
    async def RotateCredential(
        self, tx: Transaction, request: pb.RotateCredentialRequest
    ) -> Callable[[], pb.Credential]:
        """Replace a secret; the version rises, so that no data plane mistakes the old one for it."""
        row = await tx.credentials.get_for_change(request.name)
        secret = Secret(request.secret.encode())
        row.version += 1
        row.sealed_secret = self.backend.sealer.seal(row.id, row.version, secret)
        row.fingerprint = secret.fingerprint
        return lambda: credential_to_proto(row)
