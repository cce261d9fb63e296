"""`tollkeeper provider`: where answers come from."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, TypeAlias

import typer

from controlplane.cli.connection import admin_channel
from controlplane.cli.endpoints import ProviderKind, base_urls, has_bare_url
from controlplane.cli.lazy_modules import imported_on_use
from controlplane.cli.options import Force, Name, OfOrganization, Output, require_changes, words
from controlplane.cli.output import Format, print_many, print_one
from controlplane.cli.paging import all_pages
from controlplane.cli.typer_apps import example, new_app
from controlplane.cli.waiting import waits

if TYPE_CHECKING:
    from google.protobuf import field_mask_pb2
    from tollkeeper.admin.v1 import provider_service_pb2 as pb
    from tollkeeper.admin.v1 import provider_service_pb2_grpc as rpc
    from tollkeeper.config.v1 import resources_pb2
else:
    field_mask_pb2 = imported_on_use("google.protobuf.field_mask_pb2")
    pb = imported_on_use("tollkeeper.admin.v1.provider_service_pb2")
    rpc = imported_on_use("tollkeeper.admin.v1.provider_service_pb2_grpc")
    resources_pb2 = imported_on_use("tollkeeper.config.v1.resources_pb2")

app = new_app("Providers: the upstreams that answer calls.")

_COLUMNS = ("name", "id", "kind", "endpoints", "quirks")

BaseUrls: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        "--base-url",
        metavar="[DIALECT=]URL",
        help="Where it speaks a dialect: openai, anthropic or google, or its kind's own; repeat it.",
    ),
]
Quirks: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME", help="A documented deviation, such as groq; repeat it."),
]


@app.command(
    epilog=example(
        "provider create acme/up --kind openai_compatible --base-url https://api.groq.com/openai/v1 --quirks groq",
        "provider create mock --kind mock --base-url http://127.0.0.1:9090",
    )
)
@waits
def create(
    name: Name,
    kind: Annotated[ProviderKind, typer.Option(help="What it is.", show_default=False)],
    base_url: BaseUrls = None,
    quirks: Quirks = None,
    output: Output = Format.TABLE,
) -> None:
    """Create a provider.

    Without a base URL it is called at the public endpoints of its kind.
    """
    provider = pb.Provider(
        name=name, kind=kind, endpoints=_endpoints(kind, base_url or ()), quirks=words(quirks)
    )
    with admin_channel() as channel:
        service = rpc.ProviderServiceStub(channel)
        print_one(service.CreateProvider(pb.CreateProviderRequest(provider=provider)), output)


@app.command(epilog=example("provider get acme/up -o json"))
def get(name: Name, output: Output = Format.TABLE) -> None:
    """Show a provider."""
    with admin_channel() as channel:
        service = rpc.ProviderServiceStub(channel)
        print_one(service.GetProvider(pb.GetProviderRequest(name=name)), output)


@app.command("list", epilog=example("provider list --org acme"))
def list_all(org: OfOrganization = "", output: Output = Format.TABLE) -> None:
    """List providers, by name."""
    with admin_channel() as channel:
        found = all_pages(
            rpc.ProviderServiceStub(channel).ListProviders,
            pb.ListProvidersRequest(organization=org),
            lambda page: page.providers,
        )
        print_many(found, output, _COLUMNS)


@app.command(epilog=example("provider update acme/up --base-url openai=https://example.com/v1"))
@waits
def update(
    name: Name,
    kind: Annotated[ProviderKind | None, typer.Option(help="What it is.")] = None,
    base_url: BaseUrls = None,
    quirks: Quirks = None,
    output: Output = Format.TABLE,
) -> None:
    """Change what is given, and nothing else. Base URLs replace all that it had, quirks likewise."""
    given = {"kind": kind, "endpoints": base_url, "quirks": quirks}
    paths = [field for field, value in given.items() if value is not None]
    require_changes(paths)
    with admin_channel() as channel:
        service = rpc.ProviderServiceStub(channel)
        if kind is None and has_bare_url(base_url or ()):
            kind = ProviderKind(service.GetProvider(pb.GetProviderRequest(name=name)).kind)
        provider = pb.Provider(
            name=name,
            kind=kind or "",
            endpoints=_endpoints(kind or ProviderKind.HTTP, base_url or ()),
            quirks=words(quirks),
        )
        mask = field_mask_pb2.FieldMask(paths=paths)
        request = pb.UpdateProviderRequest(provider=provider, update_mask=mask)
        print_one(service.UpdateProvider(request), output)


@app.command(epilog=example("provider delete acme/up --force"))
@waits
def delete(name: Name, force: Force = False, output: Output = Format.TABLE) -> None:
    """Delete a provider."""
    with admin_channel() as channel:
        service = rpc.ProviderServiceStub(channel)
        print_one(service.DeleteProvider(pb.DeleteProviderRequest(name=name, force=force)), output)


def _endpoints(kind: ProviderKind, texts: Sequence[str]) -> "list[resources_pb2.Endpoint]":
    try:
        found = base_urls(kind, texts)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--base-url") from None
    return [
        resources_pb2.Endpoint(
            dialect=resources_pb2.Dialect.Value(f"DIALECT_{dialect.name}"), base_url=url
        )
        for dialect, url in found.items()
    ]
