"""`tollkeeper rule`: the lines of routers."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, TypeAlias

import typer

from controlplane.cli.connection import admin_channel
from controlplane.cli.lazy_modules import imported_on_use
from controlplane.cli.options import Models, Output, require_changes, words
from controlplane.cli.output import Format, print_many, print_one
from controlplane.cli.typer_apps import example, new_app
from controlplane.cli.waiting import waits

if TYPE_CHECKING:
    from google.protobuf import field_mask_pb2
    from tollkeeper.admin.v1 import router_service_pb2 as pb
    from tollkeeper.admin.v1 import router_service_pb2_grpc as rpc
else:
    field_mask_pb2 = imported_on_use("google.protobuf.field_mask_pb2")
    pb = imported_on_use("tollkeeper.admin.v1.router_service_pb2")
    rpc = imported_on_use("tollkeeper.admin.v1.router_service_pb2_grpc")

app = new_app("Rules: the lines of a router.")

_COLUMNS = ("id", "router", "priority", "provider", "models", "weight", "aliases")
_MOST = 1_000_000

Router: TypeAlias = Annotated[str, typer.Argument(help="The router: acme/r1.", show_default=False)]
RuleId: TypeAlias = Annotated[
    str, typer.Argument(metavar="ID", help="Which, as `rule list` shows it.", show_default=False)
]
Priority: TypeAlias = Annotated[
    int | None, typer.Option(min=0, max=_MOST, help="Lower numbers are tried first.")
]
Weight: TypeAlias = Annotated[
    int | None, typer.Option(min=1, max=_MOST, help="Share among rules of the same priority.")
]
Aliases: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        "--alias", metavar="NAME=MODEL", help="A name that stands for a model; repeat it."
    ),
]
Condition: TypeAlias = Annotated[str | None, typer.Option(help="An expression over the call.")]


@app.command(
    epilog=example(
        "rule create acme/r1 --priority 1 --provider acme/up --models '*' --alias fast=gpt-4o-mini"
    )
)
@waits
def create(
    router: Router,
    priority: Annotated[
        int,
        typer.Option(min=0, max=_MOST, help="Lower numbers are tried first.", show_default=False),
    ],
    provider: Annotated[str, typer.Option(help="The provider that serves.", show_default=False)],
    models: Annotated[
        list[str],
        typer.Option(
            metavar="PATTERN",
            help="Models that it takes, '*' matching any run of characters; repeat it or use commas.",
            show_default=False,
        ),
    ],
    weight: Weight = None,
    alias: Aliases = None,
    condition: Condition = None,
    output: Output = Format.TABLE,
) -> None:
    """Add a rule to a router."""
    rule, _ = _given("", priority, provider, models, weight, alias, condition)
    with admin_channel() as channel:
        request = pb.CreateRuleRequest(router=router, rule=rule)
        print_one(rpc.RouterServiceStub(channel).CreateRule(request), output)


@app.command("list", epilog=example("rule list acme/r1"))
def list_all(router: Router, output: Output = Format.TABLE) -> None:
    """List the rules of a router, in the order in which they are tried."""
    with admin_channel() as channel:
        service = rpc.RouterServiceStub(channel)
        found = service.GetRouter(pb.GetRouterRequest(name=router))
        print_many(found.rules, output, _COLUMNS)


@app.command(epilog=example("rule update 4f9k2m1x8q0z --weight 3"))
@waits
def update(
    rule_id: RuleId,
    priority: Priority = None,
    provider: Annotated[str | None, typer.Option(help="The provider that serves.")] = None,
    models: Models = None,
    weight: Weight = None,
    alias: Aliases = None,
    condition: Condition = None,
    output: Output = Format.TABLE,
) -> None:
    """Change what is given, and nothing else. Models and aliases replace all that it had."""
    rule, paths = _given(rule_id, priority, provider, models, weight, alias, condition)
    require_changes(paths)
    with admin_channel() as channel:
        mask = field_mask_pb2.FieldMask(paths=paths)
        request = pb.UpdateRuleRequest(rule=rule, update_mask=mask)
        print_one(rpc.RouterServiceStub(channel).UpdateRule(request), output)


@app.command(epilog=example("rule delete 4f9k2m1x8q0z"))
@waits
def delete(rule_id: RuleId, output: Output = Format.TABLE) -> None:
    """Remove a rule from its router."""
    with admin_channel() as channel:
        request = pb.DeleteRuleRequest(id=rule_id)
        print_one(rpc.RouterServiceStub(channel).DeleteRule(request), output)


def _given(
    rule_id: str,
    priority: int | None,
    provider: str | None,
    models: list[str] | None,
    weight: int | None,
    aliases: list[str] | None,
    condition: str | None,
) -> tuple["pb.Rule", list[str]]:
    """Return the rule as far as options describe it, and which fields they named."""
    rule = pb.Rule(
        id=rule_id,
        priority=priority or 0,
        provider=provider or "",
        models=words(models),
        weight=weight or 0,
        aliases=_aliases(aliases or ()),
        condition=condition or "",
    )
    given = {
        "priority": priority,
        "provider": provider,
        "models": models,
        "weight": weight,
        "aliases": aliases,
        "condition": condition,
    }
    return rule, [field for field, value in given.items() if value is not None]


def _aliases(texts: Iterable[str]) -> dict[str, str]:
    aliases: dict[str, str] = {}
    for text in texts:
        name, _, model = text.partition("=")
        if not name or not model:
            raise typer.BadParameter(f"{text!r} is not NAME=MODEL", param_hint="--alias")
        if name in aliases:
            raise typer.BadParameter(f"{name!r} is given twice", param_hint="--alias")
        aliases[name] = model
    return aliases
