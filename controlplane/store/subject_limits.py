"""Limits of subjects, between the domain's values and the JSON of a row."""

from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from sqlmodel.ext.asyncio.session import AsyncSession

from controlplane.domain.limits import Limit, LimitUnit, LimitWindow
from controlplane.domain.names import SubjectName, subject_row_id
from controlplane.store.rows import NamedRows
from controlplane.store.tables import SubjectLimits


def limits_to_json(limits: Iterable[Limit]) -> list[dict[str, Any]]:  # Any: JSON
    """Return limits as a row holds them: keyword arguments of the contract's `Limit`."""
    return [
        {**asdict(limit), "unit": int(limit.unit), "window": int(limit.window)} for limit in limits
    ]


def limits_from_json(items: Iterable[dict[str, Any]]) -> tuple[Limit, ...]:  # Any: JSON
    """Return the limits of a row."""
    return tuple(
        Limit(**{**item, "unit": LimitUnit(item["unit"]), "window": LimitWindow(item["window"])})
        for item in items
    )


class SubjectLimitRows(NamedRows[SubjectLimits]):
    """The limits of subjects within one session; a row's name is the subject's: `user:acme/alice`."""

    def __init__(self, session: AsyncSession) -> None:
        super().__init__(session, SubjectLimits, "limits of")

    async def find_for_change(self, subject: SubjectName) -> SubjectLimits | None:
        """Return a subject's row and keep others from changing it, or None."""
        found = await self.find(str(subject))
        return await self.get_for_change(str(subject)) if found else None

    async def of(self, subject: SubjectName) -> tuple[Limit, ...]:
        """Return a subject's limits."""
        row = await self.find(str(subject))
        return limits_from_json(row.limits) if row else ()

    @staticmethod
    def new_row(subject: SubjectName, subject_id: str, **stamps: Any) -> SubjectLimits:
        """Return a row without limits; `stamps` are `created_at` and `updated_at`."""
        return SubjectLimits(
            id=subject_row_id(subject.kind, subject_id),
            name=str(subject),
            subject_kind=int(subject.kind),
            subject_id=subject_id,
            **stamps,
        )
