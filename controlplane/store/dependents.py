"""What refers to a row, what it owns, and what goes when it goes."""

from dataclasses import dataclass, field

from controlplane.domain.names import SubjectKind, SubjectName
from controlplane.domain.routing import PROVIDER_KINDS
from controlplane.store.repositories import Repositories
from controlplane.store.tables import (
    ApiKey,
    ConfigurationRow,
    Credential,
    Device,
    Organization,
    Price,
    Provider,
    Router,
    Rule,
    SubjectLimits,
    User,
)


@dataclass(slots=True)
class Dependents:
    """What else is affected when a row is deleted."""

    referrers: list[ConfigurationRow] = field(default_factory=list)
    """Deleted only by force: what the row owns and what refers to it, directly or through others."""
    parts: list[ConfigurationRow] = field(default_factory=list)
    """Deleted with their whole, without asking: limits of a subject, rules of a router."""
    touched: list[ConfigurationRow] = field(default_factory=list)
    """Stay, and travel with other content: a router that loses a rule, a provider that loses a credential."""


async def dependents_of(rows: Repositories, row: ConfigurationRow) -> Dependents:
    """Return everything that depends on `row`, each thing once."""
    found = Dependents()
    seen = {(row.KIND, row.id)}
    waiting = [row]
    while waiting:
        current = waiting.pop()
        found.touched += await _wholes_of(rows, current)
        for part in await _parts_of(rows, current):
            if (part.KIND, part.id) not in seen:
                seen.add((part.KIND, part.id))
                found.parts.append(part)
        for referrer in await _referrers_of(rows, current):
            if (referrer.KIND, referrer.id) not in seen:
                seen.add((referrer.KIND, referrer.id))
                found.referrers.append(referrer)
                waiting.append(referrer)
    return found


async def _referrers_of(rows: Repositories, row: ConfigurationRow) -> list[ConfigurationRow]:
    match row:
        case Organization():
            return [
                *await rows.users.where(organization_id=row.id),
                *await rows.providers.where(organization_id=row.id),
                *await rows.routers.where(organization_id=row.id),
            ]
        case User():
            return [
                *await rows.api_keys.where(user_id=row.id),
                *await rows.devices.where(user_id=row.id),
            ]
        case Router():
            return [
                *await rows.api_keys.where(router_id=row.id),
                *await rows.devices.where(router_id=row.id),
            ]
        case Provider():
            # A price may also be meant for a kind of provider, which outlives any provider of that name.
            priced = row.name not in PROVIDER_KINDS
            return [
                *await rows.credentials.where(provider_id=row.id),
                *await rows.rules.of_provider(row.id),
                *(await rows.prices.of_provider(row.name) if priced else ()),
            ]
        case _:
            return []


async def _parts_of(rows: Repositories, row: ConfigurationRow) -> list[ConfigurationRow]:
    match row:
        case Organization():
            subject = SubjectName(SubjectKind.ORGANIZATION, row.name)
        case User():
            subject = SubjectName(SubjectKind.USER, row.name)
        case ApiKey():
            subject = SubjectName(SubjectKind.KEY, row.name)
        case Device():
            subject = SubjectName(SubjectKind.DEVICE, row.id)
        case Router():
            return [*(await rows.rules.of_routers([row.id]))[row.id]]
        case _:
            return []
    limits = await rows.limits.find_for_change(subject)
    return [limits] if limits else []


async def _wholes_of(rows: Repositories, row: ConfigurationRow) -> list[ConfigurationRow]:
    match row:
        case Rule():
            return [await rows.routers.named(row.router_id)]
        case Credential():
            return [await rows.providers.named(row.provider_id)]
        case _:
            return []


async def label_of(rows: Repositories, row: ConfigurationRow) -> str:
    """Return what people call a row: `user acme/alice`, `device 3k2…`, `rule 3k2… of router acme/r1`."""
    match row:
        case ApiKey():
            return f"key {row.name}"
        case Rule():
            return f"rule {row.id} of router {(await rows.routers.named(row.router_id)).name}"
        case Price():
            return f"price {row.provider} {row.model}"
        case SubjectLimits():
            return f"limits {row.name}"
        case Organization() | User() | Provider() | Router() | Credential():
            return f"{row.KIND} {row.name}"
        case _:
            return f"{row.KIND} {row.id}"
