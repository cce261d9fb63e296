"""`tollkeeper node …`: which data planes may be nodes: join tokens, enrolled nodes, bans."""

from datetime import timedelta
from typing import TYPE_CHECKING, Annotated

import typer

from controlplane.cli.connection import admin_channel, admin_settings
from controlplane.cli.durations import duration_from_text
from controlplane.cli.lazy_modules import imported_on_use
from controlplane.cli.options import Output, words
from controlplane.cli.output import Format, note, print_many, print_one
from controlplane.cli.plain import record_of
from controlplane.cli.typer_apps import example, reader

if TYPE_CHECKING:
    from google.protobuf import duration_pb2
    from tollkeeper.admin.v1 import node_service_pb2 as pb
    from tollkeeper.admin.v1 import node_service_pb2_grpc as rpc
else:
    duration_pb2 = imported_on_use("google.protobuf.duration_pb2")
    pb = imported_on_use("tollkeeper.admin.v1.node_service_pb2")
    rpc = imported_on_use("tollkeeper.admin.v1.node_service_pb2_grpc")

_TOKEN_COLUMNS = ("id", "node_id", "organizations", "created_at", "expires_at")
_NODE_COLUMNS = (
    "node_id",
    "enrolled_at",
    "certificate_expires_at",
    "organizations",
    "banned_at",
    "ban_reason",
)

NodeId = Annotated[str, typer.Argument(help="The node's id.", show_default=False)]


def add_commands(app: typer.Typer) -> None:
    """Add the commands of this module to `tollkeeper node`."""
    app.command(
        "create-token",
        epilog=example("node create-token --node eu-1 --address control.example.com:50051"),
    )(create_token)
    app.command("list-tokens", epilog=example("node list-tokens"))(list_tokens)
    app.command("delete-token", epilog=example("node delete-token 3k2x9q0d1f4z"))(delete_token)
    app.command("enrolled", epilog=example("node enrolled -o json"))(enrolled)
    app.command("ban", epilog=example("node ban eu-1 --reason 'its host was taken over'"))(ban)
    app.command("unban", epilog=example("node unban eu-1"))(unban)


def create_token(
    node: Annotated[
        str | None,
        typer.Option(
            help="The id of the node that may join with it; without it the node chooses.",
            show_default=False,
        ),
    ] = None,
    address: Annotated[
        list[str] | None,
        typer.Option(
            metavar="HOST:PORT",
            help="Where the node joins: the admin port of a control plane; repeat it or use commas. "
            "By default the one that this command calls.",
        ),
    ] = None,
    org: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="An organization that the node serves; repeat it or use commas. By default all.",
        ),
    ] = None,
    lifetime: Annotated[
        timedelta,
        typer.Option(
            parser=reader(duration_from_text),
            metavar="TIME",
            help="For how long it may be used: 1m to 7d.",
        ),
    ] = "1h",  # type: ignore[assignment]  # typer reads defaults as it reads options
    output: Output = Format.TABLE,
) -> None:
    """Make a token with which one data plane joins, once, and show it, this once."""
    # A variable of a script that is empty must not make a token for everything.
    if node == "" or (org is not None and not words(org)):
        raise typer.BadParameter("--node and --org name something, or are left out")
    addresses = words(address) or [str(admin_settings().address)]
    wanted = duration_pb2.Duration()
    wanted.FromTimedelta(lifetime)
    with admin_channel() as channel:
        created = rpc.NodeServiceStub(channel).CreateJoinToken(
            pb.CreateJoinTokenRequest(
                node_id=node or "", lifetime=wanted, organizations=words(org), addresses=addresses
            )
        )
        print_one({**record_of(created.token), "join_token": created.join_token}, output)
        note("The token is shown this once: give it to the node as TOLLKEEPER_JOIN_TOKEN.")


def list_tokens(output: Output = Format.TABLE) -> None:
    """List the join tokens that are neither used nor expired."""
    with admin_channel() as channel:
        response = rpc.NodeServiceStub(channel).ListJoinTokens(pb.ListJoinTokensRequest())
        print_many(response.tokens, output, _TOKEN_COLUMNS)


def delete_token(
    token_id: Annotated[str, typer.Argument(help="The token's id.", show_default=False)],
) -> None:
    """Make a join token useless."""
    with admin_channel() as channel:
        rpc.NodeServiceStub(channel).DeleteJoinToken(pb.DeleteJoinTokenRequest(id=token_id))
        note(f"Deleted join token {token_id}.")


def enrolled(output: Output = Format.TABLE) -> None:
    """List the data planes that joined, with the ends of their certificates, and those that are banned."""
    with admin_channel() as channel:
        response = rpc.NodeServiceStub(channel).ListEnrolledNodes(pb.ListEnrolledNodesRequest())
        print_many(response.nodes, output, _NODE_COLUMNS)


def ban(
    node_id: NodeId,
    reason: Annotated[
        str, typer.Option(help="Why, for whoever reads the list.", show_default=False)
    ] = "",
    output: Output = Format.TABLE,
) -> None:
    """Refuse a data plane for good, and name the provider credentials that it may have received."""
    with admin_channel() as channel:
        banned = rpc.NodeServiceStub(channel).BanNode(
            pb.BanNodeRequest(node_id=node_id, reason=reason)
        )
        print_one(banned, output)
        if banned.received_credentials:
            note("Rotate these credentials: the node may have received them.")


def unban(node_id: NodeId, output: Output = Format.TABLE) -> None:
    """Let a banned data plane be a node again; where nodes join by token it needs a new one."""
    with admin_channel() as channel:
        response = rpc.NodeServiceStub(channel).UnbanNode(pb.UnbanNodeRequest(node_id=node_id))
        print_one(response, output)
