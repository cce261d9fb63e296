"""Routers and their rules."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final

from tollkeeper.admin.v1 import changes_pb2, router_service_pb2_grpc
from tollkeeper.admin.v1 import router_service_pb2 as pb

from controlplane.domain.errors import InvalidError
from controlplane.domain.names import new_id, organization_of
from controlplane.domain.routing import check_rule
from controlplane.rpc.changing import AdminServicer, changing
from controlplane.rpc.deleting import delete_row
from controlplane.rpc.interception import Context
from controlplane.rpc.masks import masked_fields
from controlplane.rpc.pages import page_of
from controlplane.rpc.resources import check_etag, stamps_of
from controlplane.store.repositories import Repositories
from controlplane.store.tables import Provider, Router, Rule
from controlplane.store.transactions import Transaction

_ROUTER_FIELDS: Final = frozenset({"gateway_metadata"})
_RULE_FIELDS: Final = frozenset(
    {"priority", "provider", "models", "condition", "weight", "aliases"}
)


def rule_to_proto(row: Rule, router: Router, provider: Provider) -> pb.Rule:
    """Return a rule as the admin API shows it."""
    return pb.Rule(
        id=row.id,
        priority=row.priority,
        provider=provider.name,
        models=row.models,
        condition=row.condition,
        weight=row.weight,
        aliases=row.aliases,
        router=router.name,
        revision=row.revision,
    )


def router_to_proto(
    row: Router, rules: Iterable[Rule], providers: Mapping[str, Provider]
) -> pb.Router:
    """Return a router as the admin API shows it, with its rules; `providers` by id."""
    return pb.Router(
        name=row.name,
        gateway_metadata=row.gateway_metadata,
        rules=[rule_to_proto(rule, row, providers[rule.provider_id]) for rule in rules],
        **stamps_of(row),
    )


async def _to_protos(rows: Repositories, routers: Sequence[Router]) -> list[pb.Router]:
    rules = await rows.rules.of_routers([router.id for router in routers])
    used = [rule.provider_id for lines in rules.values() for rule in lines]
    providers = await rows.providers.by_ids(used)
    return [router_to_proto(router, rules[router.id], providers) for router in routers]


class RouterServicer(AdminServicer, router_service_pb2_grpc.RouterServiceServicer):
    """Serves RouterService."""

    @changing(pb.Router)
    async def CreateRouter(
        self, tx: Transaction, request: pb.CreateRouterRequest
    ) -> Callable[[], pb.Router]:
        """Add a router without rules."""
        given = request.router
        owner = await tx.organization_id(organization_of(given.name), field="router.name")
        row = Router(
            id=new_id(self.backend.random_below),
            name=given.name,
            organization_id=owner,
            gateway_metadata=given.gateway_metadata,
            created_at=tx.now,
            updated_at=tx.now,
        )
        await tx.routers.add(row)
        return lambda: router_to_proto(row, (), {})

    async def GetRouter(self, request: pb.GetRouterRequest, _context: Context) -> pb.Router:
        """Return a router with its rules."""
        async with self.backend.store.reading() as session:
            rows = Repositories(session)
            return (await _to_protos(rows, [await rows.routers.get(request.name)]))[0]

    async def ListRouters(
        self, request: pb.ListRoutersRequest, _context: Context
    ) -> pb.ListRoutersResponse:
        """Return a page of routers with their rules."""
        page = page_of(request)
        async with self.backend.store.reading() as session:
            repositories = Repositories(session)
            owner = await repositories.organization_id(request.organization)
            rows = await repositories.routers.page(
                after=page.after_name, size=page.fetch, organization_id=owner
            )
            shown = await _to_protos(repositories, page.cut(rows))
        return pb.ListRoutersResponse(routers=shown, next_page_token=page.next_token(rows, "name"))

    @changing(pb.Router)
    async def UpdateRouter(
        self, tx: Transaction, request: pb.UpdateRouterRequest
    ) -> Callable[[], pb.Router]:
        """Change a router; its rules have methods of their own."""
        masked_fields(request.update_mask, _ROUTER_FIELDS)
        row = await tx.routers.get_for_change(request.router.name)
        check_etag(row, request.router)
        row.gateway_metadata = request.router.gateway_metadata
        rules = (await tx.rules.of_routers([row.id]))[row.id]
        providers = await tx.providers.by_ids([rule.provider_id for rule in rules])
        return lambda: router_to_proto(row, rules, providers)

    @changing(changes_pb2.DeleteResult)
    async def DeleteRouter(
        self, tx: Transaction, request: pb.DeleteRouterRequest
    ) -> Callable[[], changes_pb2.DeleteResult]:
        """Remove a router with its rules, by force with the keys that take it."""
        row = await tx.routers.get_for_change(request.name)
        check_etag(row, request)
        return await delete_row(tx, self.backend.revoker, row, force=request.force)

    @changing(pb.Rule)
    async def CreateRule(
        self, tx: Transaction, request: pb.CreateRuleRequest
    ) -> Callable[[], pb.Rule]:
        """Add a line to a router."""
        router = await tx.routers.get_for_change(request.router, field="router")
        provider = await _provider_for(tx, router, request.rule)
        row = Rule(
            id=new_id(self.backend.random_below),
            router_id=router.id,
            provider_id=provider.id,
            created_at=tx.now,
            updated_at=tx.now,
        )
        _apply(row, request.rule, _RULE_FIELDS)
        tx.add(row)
        tx.touch(router)
        return lambda: rule_to_proto(row, router, provider)

    @changing(pb.Rule)
    async def UpdateRule(
        self, tx: Transaction, request: pb.UpdateRuleRequest
    ) -> Callable[[], pb.Rule]:
        """Change a line of a router."""
        fields = masked_fields(request.update_mask, _RULE_FIELDS)
        row = await tx.rules.get_for_change(request.rule.id, field="rule.id")
        router = await tx.routers.named(row.router_id)
        provider = await tx.providers.named(row.provider_id)
        if "provider" in fields:
            provider = await _provider_for(tx, router, request.rule)
            row.provider_id = provider.id
        _apply(row, request.rule, frozenset(fields))
        if tx.session.is_modified(row):
            tx.touch(router)
        return lambda: rule_to_proto(row, router, provider)

    @changing(changes_pb2.DeleteResult)
    async def DeleteRule(
        self, tx: Transaction, request: pb.DeleteRuleRequest
    ) -> Callable[[], changes_pb2.DeleteResult]:
        """Remove a line from its router."""
        row = await tx.rules.get_for_change(request.id)
        return await delete_row(tx, self.backend.revoker, row, force=False)


def _apply(row: Rule, given: pb.Rule, fields: frozenset[str]) -> None:
    check_rule(given.condition if "condition" in fields else "", given.aliases)
    if "priority" in fields:
        row.priority = given.priority
    if "models" in fields:
        row.models = list(given.models)
    if "weight" in fields:
        row.weight = given.weight
    if "aliases" in fields:
        row.aliases = dict(sorted(given.aliases.items()))


async def _provider_for(tx: Transaction, router: Router, given: pb.Rule) -> Provider:
    if not given.provider:
        raise InvalidError("a rule needs a provider", field="rule.provider")
    organization = await tx.organization_of(router)
    return await tx.providers.resolve(given.provider, organization, field="rule.provider")
