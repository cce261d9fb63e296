"""Structural resources, of which a bad one refuses the whole: half a routing table is worse than yesterday's."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from tollkeeper.config.v1 import resources_pb2 as pb

from dataplane.control.compiling.draft import Draft
from dataplane.control.read_principals import read_organization, read_service
from dataplane.control.read_providers import (
    OwnedCredential,
    read_credential,
    read_provider,
    read_router,
)
from dataplane.domain.principals import Organization, Service
from dataplane.domain.providers import Provider, Router
from dataplane.domain.sharded_map import ShardedMap

_PROVIDER: Final = pb.RESOURCE_KIND_PROVIDER
_CREDENTIAL: Final = pb.RESOURCE_KIND_CREDENTIAL


@dataclass(slots=True)
class Structure:
    """What does not depend on who calls, limits apart.

    Attributes:
        routers_gone: Ids of routers that were there.
    """

    draft: Draft
    services: ShardedMap[str, Service] = field(init=False)
    organizations: ShardedMap[str, Organization] = field(init=False)
    credentials: ShardedMap[str, OwnedCredential] = field(init=False)
    providers: ShardedMap[str, Provider] = field(init=False)
    routers: ShardedMap[str, Router] = field(init=False)
    fail_open: int = field(init=False)
    routers_gone: set[str] = field(default_factory=set)

    async def build(self) -> None:
        """Read again what is touched, and have those read again that depend on it."""
        draft, origin = self.draft, self.draft.origin
        self.services = await draft.rebuilt(
            pb.RESOURCE_KIND_SERVICE, pb.Service, origin.services, read_service, draft.refuse
        )
        self.fail_open = origin.fail_open
        self.organizations = await draft.rebuilt(
            pb.RESOURCE_KIND_ORGANIZATION,
            pb.Organization,
            origin.organizations,
            read_organization,
            draft.refuse,
            changed=self._organization_changed,
        )
        await self._touch_credentials()
        self.credentials = await draft.rebuilt(
            _CREDENTIAL,
            pb.Credential,
            origin.credentials,
            lambda each, message: read_credential(
                each,
                message,
                draft.transition.secret_after(each.resource_id),
                is_provider_there=self._is_there((_PROVIDER, message.provider_id)),
            ),
            draft.refuse,
            changed=lambda credential_id, *_: draft.touch_referrers(_CREDENTIAL, credential_id),
            refers=lambda message: ((_PROVIDER, message.provider_id),),
        )
        self.providers = await draft.rebuilt(
            _PROVIDER,
            pb.Provider,
            origin.providers,
            lambda each, message: read_provider(each, message, self.credentials),
            draft.refuse,
            changed=lambda provider_id, *_: draft.touch_referrers(_PROVIDER, provider_id),
            refers=lambda message: ((_CREDENTIAL, each) for each in message.credential_ids),
        )
        self.routers = await draft.rebuilt(
            pb.RESOURCE_KIND_ROUTER,
            pb.Router,
            origin.routers,
            lambda each, message: read_router(each, message, self.providers),
            draft.refuse,
            changed=self._router_changed,
            refers=_providers_of,
        )

    async def _touch_credentials(self) -> None:
        """Have credentials read again whose provider came or went: what it holds is all one to them."""
        for key in self.draft.touched(_PROVIDER):
            if (self.draft.transition.before(key) is None) != (not self._is_there(key)):
                await self.draft.touch_referrers(_PROVIDER, key[1])
            await self.draft.slices.breathe()

    def _is_there(self, key: tuple[int, str]) -> bool:
        return self.draft.transition.after(key) is not None

    async def _organization_changed(
        self, organization_id: str, before: Organization | None, after: Organization | None
    ) -> None:
        self.fail_open += (after is not None and after.fails_open) - (
            before is not None and before.fails_open
        )
        await self.draft.touch_referrers(pb.RESOURCE_KIND_ORGANIZATION, organization_id)

    async def _router_changed(
        self, router_id: str, before: Router | None, after: Router | None
    ) -> None:
        """Have callers read again whose router came; those whose router went are looked for later."""
        if before is None:
            await self.draft.touch_referrers(pb.RESOURCE_KIND_ROUTER, router_id)
        elif after is None:
            self.routers_gone.add(router_id)


def _providers_of(router: pb.Router) -> Iterator[tuple[int, str]]:
    return ((_PROVIDER, rule.provider_id) for rule in router.rules)
