"""Lines of routers."""

from collections.abc import Collection

from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from controlplane.domain.errors import NotFoundError
from controlplane.store.tables import Rule


class Rules:
    """The rules within one session."""

    def __init__(self, session: AsyncSession) -> None:
        self._session = session

    async def get_for_change(self, rule_id: str, *, field: str = "id") -> Rule:
        """Return a rule and keep others from changing it until this transaction ends.

        Raises:
            NotFoundError: There is none.
        """
        rule = await self._session.get(Rule, rule_id, with_for_update=True, populate_existing=True)
        if rule is None:
            raise NotFoundError(f"there is no rule {rule_id[:200]}", field=field)
        return rule

    async def of_routers(self, router_ids: Collection[str]) -> dict[str, list[Rule]]:
        """Return the rules of these routers in the order in which they are tried; every router has a list."""
        statement = (
            select(Rule)
            .where(col(Rule.router_id).in_(router_ids))
            .order_by(col(Rule.priority), col(Rule.id))
        )
        found: dict[str, list[Rule]] = {router_id: [] for router_id in router_ids}
        for rule in (await self._session.exec(statement)).all():
            found[rule.router_id].append(rule)
        return found

    async def of_provider(self, provider_id: str) -> list[Rule]:
        """Return the rules that a provider serves."""
        statement = select(Rule).where(Rule.provider_id == provider_id).order_by(col(Rule.id))
        return list((await self._session.exec(statement)).all())
