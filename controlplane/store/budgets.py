"""Who has budgets, from where they come, and whose calendar they go by."""

from collections import defaultdict
from collections.abc import Iterable
from typing import Any, Final

from sqlalchemy import ColumnElement, exists, func, or_, type_coerce
from sqlalchemy.dialects.postgresql import JSONB
from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from controlplane.domain.limits import Limit, LimitUnit
from controlplane.domain.names import SubjectKind
from controlplane.store.repositories import Repositories
from controlplane.store.service import SERVICE_ID
from controlplane.store.subject_limits import limits_from_json
from controlplane.store.tables import (
    ApiKey,
    Device,
    Organization,
    ServiceSettings,
    SubjectLimits,
    Tier,
    User,
)

_SPEND: Final = int(LimitUnit.SPEND)

Subject = tuple[SubjectKind, str]
"""A kind and an id."""


async def subjects_with_budgets(
    session: AsyncSession, *, after: str, size: int
) -> list[SubjectLimits]:
    """Return at most `size` subjects that have budgets of their own, lasting or temporary, by name, behind `after`.

    A temporary one may have expired.
    """
    name = col(SubjectLimits.name)
    is_postgresql = session.get_bind().dialect.name == "postgresql"
    statement = (
        select(SubjectLimits)
        .where(name > after, _has_budgets_in_jsonb() if is_postgresql else _has_budgets_in_text())
        .order_by(name)
        .limit(size)
    )
    return list((await session.exec(statement)).all())


def _has_budgets_in_jsonb() -> ColumnElement[bool]:
    limits = type_coerce(col(SubjectLimits.limits), JSONB)
    temporary = type_coerce(col(SubjectLimits.temporary_limits), JSONB)
    return or_(
        limits.contains([{"unit": _SPEND}]), temporary.contains([{"limit": {"unit": _SPEND}}])
    )


def _has_budgets_in_text() -> ColumnElement[bool]:
    def holds(items: Any, path: str) -> ColumnElement[bool]:  # Any: a column
        item = func.json_each(items).table_valued("value")
        return exists().where(func.json_extract(item.c.value, path) == _SPEND)

    return or_(
        holds(SubjectLimits.limits, "$.unit"),
        holds(SubjectLimits.temporary_limits, "$.limit.unit"),
    )


async def time_zones_of(session: AsyncSession, subjects: Iterable[Subject]) -> dict[Subject, str]:
    """Return the time zones of the organizations that subjects belong to; who belongs to none has none here."""
    by_kind: dict[SubjectKind, set[str]] = defaultdict(set)
    for kind, subject_id in subjects:
        by_kind[kind].add(subject_id)
    zone = col(Organization.time_zone)
    belonging = col(User.organization_id) == col(Organization.id)
    of_users = select(User.id, zone).join(Organization, belonging)
    owner = {
        SubjectKind.ORGANIZATION: (select(Organization.id, zone), col(Organization.id)),
        SubjectKind.USER: (of_users, col(User.id)),
        SubjectKind.KEY: (
            select(ApiKey.id, zone)
            .join(User, col(ApiKey.user_id) == col(User.id))
            .join(Organization, belonging),
            col(ApiKey.id),
        ),
        SubjectKind.DEVICE: (
            select(Device.id, zone)
            .join(User, col(Device.user_id) == col(User.id))
            .join(Organization, belonging),
            col(Device.id),
        ),
    }
    found: dict[Subject, str] = {}
    for kind, (statement, subject_id_column) in owner.items():
        if by_kind[kind]:
            rows = await session.exec(statement.where(subject_id_column.in_(by_kind[kind])))
            found |= {(kind, subject_id): time_zone for subject_id, time_zone in rows.all()}
    return found


async def defaults_of(rows: Repositories, subject: Subject) -> tuple[Limit, ...]:
    """Return what a subject has without limits of its own: the service's, or those of its tier. Of a unit and window the last counts.

    Of a user by the user's own tier: calls by a key or device that has another one are held to what that one sets for users.
    """
    kind, subject_id = subject
    match kind:
        case SubjectKind.GLOBAL:
            service = await rows.session.get(ServiceSettings, SERVICE_ID)
            return limits_from_json(service.default_global_limits) if service else ()
        case SubjectKind.USER:
            user = await rows.users.named(subject_id)
            tier = await _tier(rows, user.tier)
            if tier is not None:
                return limits_from_json(tier.user_limits)
            service = await rows.session.get(ServiceSettings, SERVICE_ID)
            return limits_from_json(service.default_user_limits) if service else ()
        case SubjectKind.KEY:
            key = await rows.api_keys.named(subject_id)
            tier = await _tier(rows, key.tier or (await rows.users.named(key.user_id)).tier)
            return limits_from_json(tier.credential_limits) if tier else ()
        case SubjectKind.DEVICE:
            device = await rows.devices.get(subject_id)
            if device.user_id is None:
                return ()
            tier = await _tier(rows, device.tier or (await rows.users.named(device.user_id)).tier)
            items = [*tier.credential_limits, *tier.device_limits] if tier else []
            return limits_from_json(items)
        case _:
            return ()


async def _tier(rows: Repositories, name: str) -> Tier | None:
    return await rows.tiers.find(name) if name else None
