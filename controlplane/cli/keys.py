"""`tollkeeper key`: API keys of users."""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, TypeAlias

import typer

from controlplane.cli.connection import admin_channel
from controlplane.cli.durations import future_instant
from controlplane.cli.lazy_modules import imported_on_use
from controlplane.cli.options import (
    Force,
    Models,
    Name,
    OfOrganization,
    OfTier,
    OfUser,
    Output,
    require_changes,
    timestamp_of,
    words,
)
from controlplane.cli.output import Format, note, print_many, print_one
from controlplane.cli.paging import all_pages
from controlplane.cli.plain import record_of
from controlplane.cli.receipts import (
    TerminateStreams,
    Wait,
    deadline_s,
    milliseconds,
    print_receipt,
)
from controlplane.cli.typer_apps import example, new_app, reader
from controlplane.cli.waiting import waits

if TYPE_CHECKING:
    from google.protobuf import field_mask_pb2
    from tollkeeper.admin.v1 import api_key_service_pb2 as pb
    from tollkeeper.admin.v1 import api_key_service_pb2_grpc as rpc
else:
    field_mask_pb2 = imported_on_use("google.protobuf.field_mask_pb2")
    pb = imported_on_use("tollkeeper.admin.v1.api_key_service_pb2")
    rpc = imported_on_use("tollkeeper.admin.v1.api_key_service_pb2_grpc")

app = new_app("API keys: the credentials of users.")

_COLUMNS = ("name", "id", "display", "router", "allowed_models", "tier", "expires_at", "revoked")


@dataclass(frozen=True, slots=True)
class Expiry:
    """When a key ends; None is never, which is not the same as an option that was not given."""

    at: datetime | None


def _expiry(text: str) -> Expiry:
    return Expiry(None if text == "never" else future_instant(text, datetime.now(UTC)))


Expires: TypeAlias = Annotated[
    Expiry | None,
    typer.Option(
        parser=reader(_expiry),
        metavar="TIME",
        help="Refused from then on: 90d from now, 2027-01-31, or 'never'.",
    ),
]


@app.command(epilog=example("key create acme/alice/laptop --models 'gpt-*' --expires 90d"))
@waits
def create(
    name: Name,
    router: Annotated[
        str, typer.Option(help="The router of its calls; a bare name is the organization's own.")
    ] = "default",
    models: Models = None,
    tier: OfTier = None,
    expires: Expires = None,
    test: Annotated[bool, typer.Option("--test", help="For test traffic.")] = False,
    output: Output = Format.TABLE,
) -> None:
    """Create a key and show it, this once. It is kept nowhere."""
    with admin_channel() as channel:
        key, _ = _given(name, router, models, tier, expires)
        key.test = test
        created = rpc.ApiKeyServiceStub(channel).CreateApiKey(pb.CreateApiKeyRequest(api_key=key))
        print_one({**record_of(created.key), "api_key": created.api_key}, output)
        note("The key is shown this once: keep it now.")


@app.command(epilog=example("key get acme/alice/laptop -o json"))
def get(name: Name, output: Output = Format.TABLE) -> None:
    """Show a key, without its text."""
    with admin_channel() as channel:
        service = rpc.ApiKeyServiceStub(channel)
        print_one(service.GetApiKey(pb.GetApiKeyRequest(name=name)), output)


@app.command("list", epilog=example("key list --user acme/alice"))
def list_all(org: OfOrganization = "", user: OfUser = "", output: Output = Format.TABLE) -> None:
    """List keys, by name."""
    with admin_channel() as channel:
        found = all_pages(
            rpc.ApiKeyServiceStub(channel).ListApiKeys,
            pb.ListApiKeysRequest(organization=org, user=user),
            lambda page: page.api_keys,
        )
        print_many(found, output, _COLUMNS)


@app.command(
    epilog=example(
        "key update acme/alice/laptop --router acme/r1 --expires never",
        "key update acme/alice/laptop --tier none",
    )
)
@waits
def update(
    name: Name,
    router: Annotated[str | None, typer.Option(help="The router of its calls.")] = None,
    models: Models = None,
    tier: OfTier = None,
    expires: Expires = None,
    output: Output = Format.TABLE,
) -> None:
    """Change what is given, and nothing else."""
    key, paths = _given(name, router, models, tier, expires)
    require_changes(paths)
    with admin_channel() as channel:
        mask = field_mask_pb2.FieldMask(paths=paths)
        request = pb.UpdateApiKeyRequest(api_key=key, update_mask=mask)
        print_one(rpc.ApiKeyServiceStub(channel).UpdateApiKey(request), output)


@app.command(epilog=example("key revoke acme/alice/laptop --wait 2s --terminate-streams"))
def revoke(
    name: Name,
    wait: Wait = "2s",  # type: ignore[assignment]  # Typer gives a default to the parser, and shows it
    terminate_streams: TerminateStreams = False,
    output: Output = Format.TABLE,
) -> None:
    """Take a key out of service for good, and show which data planes refuse it by now.

    One that has not answered yet is no failure: the revocation stands, and it obeys when it returns.
    """
    with admin_channel() as channel:
        request = pb.RevokeApiKeyRequest(
            name=name, wait_ms=milliseconds(wait), terminate_streams=terminate_streams
        )
        service = rpc.ApiKeyServiceStub(channel)
        print_receipt(service.RevokeApiKey(request, timeout=deadline_s(wait)), output)


@app.command(epilog=example("key delete acme/alice/laptop"))
@waits
def delete(name: Name, force: Force = False, output: Output = Format.TABLE) -> None:
    """Delete a key. To stop one that has leaked, revoke it: that answers with a receipt."""
    with admin_channel() as channel:
        service = rpc.ApiKeyServiceStub(channel)
        print_one(service.DeleteApiKey(pb.DeleteApiKeyRequest(name=name, force=force)), output)


def _given(
    name: str,
    router: str | None,
    models: list[str] | None,
    tier: str | None,
    expires: Expiry | None,
) -> tuple["pb.ApiKey", list[str]]:
    """Return the key as far as options describe it, and which fields they named."""
    key = pb.ApiKey(
        name=name,
        router=router or "",
        allowed_models=words(models),
        tier=tier or "",
        expires_at=timestamp_of(expires.at if expires else None),
    )
    given = {"router": router, "allowed_models": models, "tier": tier, "expires_at": expires}
    return key, [field for field, value in given.items() if value is not None]
