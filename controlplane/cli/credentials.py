"""`tollkeeper credential`: secrets at providers. They go in and never come out."""

from typing import TYPE_CHECKING, Annotated, TypeAlias

import typer

from controlplane.cli.connection import admin_channel
from controlplane.cli.lazy_modules import imported_on_use
from controlplane.cli.options import Force, Name, Output
from controlplane.cli.output import Format, print_many, print_one
from controlplane.cli.paging import all_pages
from controlplane.cli.secret_input import secret_from_stdin
from controlplane.cli.typer_apps import example, new_app
from controlplane.cli.waiting import waits

if TYPE_CHECKING:
    from tollkeeper.admin.v1 import credential_service_pb2 as pb
    from tollkeeper.admin.v1 import credential_service_pb2_grpc as rpc
else:
    pb = imported_on_use("tollkeeper.admin.v1.credential_service_pb2")
    rpc = imported_on_use("tollkeeper.admin.v1.credential_service_pb2_grpc")

app = new_app("Credentials: secrets at providers, which go in and never come out.")

_COLUMNS = ("name", "id", "version", "fingerprint", "updated_at")

SecretStdin: TypeAlias = Annotated[
    bool,
    typer.Option("--secret-stdin", help="Read the secret from stdin.", show_default=False),
]


@app.command(
    epilog=example(
        "printenv OPENAI_API_KEY | tollkeeper credential create acme/up/main --secret-stdin"
    )
)
@waits
def create(name: Name, secret_stdin: SecretStdin = False, output: Output = Format.TABLE) -> None:
    """Give a provider a credential. Its name is the provider's and one more segment."""
    secret = _secret(secret_stdin)
    with admin_channel() as channel:
        service = rpc.CredentialServiceStub(channel)
        credential = pb.Credential(name=name)
        request = pb.CreateCredentialRequest(credential=credential, secret=secret)
        print_one(service.CreateCredential(request), output)


@app.command(epilog=example("credential get acme/up/main -o json"))
def get(name: Name, output: Output = Format.TABLE) -> None:
    """Show a credential, without its secret."""
    with admin_channel() as channel:
        service = rpc.CredentialServiceStub(channel)
        print_one(service.GetCredential(pb.GetCredentialRequest(name=name)), output)


@app.command("list", epilog=example("credential list --provider acme/up"))
def list_all(
    provider: Annotated[str, typer.Option(help="Only of this provider.", show_default=False)] = "",
    output: Output = Format.TABLE,
) -> None:
    """List credentials, by name."""
    with admin_channel() as channel:
        found = all_pages(
            rpc.CredentialServiceStub(channel).ListCredentials,
            pb.ListCredentialsRequest(provider=provider),
            lambda page: page.credentials,
        )
        print_many(found, output, _COLUMNS)


@app.command(
    epilog=example("pass show openai | tollkeeper credential rotate acme/up/main --secret-stdin")
)
@waits
def rotate(name: Name, secret_stdin: SecretStdin = False, output: Output = Format.TABLE) -> None:
    """Replace the secret. Data planes use the new one from the next request on."""
    secret = _secret(secret_stdin)
    with admin_channel() as channel:
        service = rpc.CredentialServiceStub(channel)
        request = pb.RotateCredentialRequest(name=name, secret=secret)
        print_one(service.RotateCredential(request), output)


@app.command(epilog=example("credential delete acme/up/main"))
@waits
def delete(name: Name, force: Force = False, output: Output = Format.TABLE) -> None:
    """Delete a credential."""
    with admin_channel() as channel:
        service = rpc.CredentialServiceStub(channel)
        request = pb.DeleteCredentialRequest(name=name, force=force)
        print_one(service.DeleteCredential(request), output)


def _secret(secret_stdin: bool) -> str:
    if not secret_stdin:
        raise typer.BadParameter("say where the secret comes from: --secret-stdin")
    return secret_from_stdin()
