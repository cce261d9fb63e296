"""Limits of subjects, between the domain's values and the JSON of a row."""

from collections.abc import Iterable
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any, Final

from sqlmodel.ext.asyncio.session import AsyncSession

from controlplane.domain.limits import Limit, LimitUnit, LimitWindow
from controlplane.domain.names import SubjectName, subject_row_id
from controlplane.domain.subject_limits import CounterReset, SubjectLimitSet, TemporaryLimit
from controlplane.store.rows import NamedRows
from controlplane.store.tables import SubjectLimits

# A program of before rates reads rows too, and does not know these: they stand in rates only.
_OF_RATES: Final = ("every_ms", "burst")


def limits_to_json(limits: Iterable[Limit]) -> list[dict[str, Any]]:  # Any: JSON
    """Return limits as a row holds them: keyword arguments of the contract's `Limit`."""
    return [_limit_to_json(limit) for limit in limits]


def limits_from_json(items: Iterable[dict[str, Any]]) -> tuple[Limit, ...]:  # Any: JSON
    """Return the limits of a row."""
    return tuple(Limit(**_with_enums(item)) for item in items)


def temporary_to_json(limits: Iterable[TemporaryLimit]) -> list[dict[str, Any]]:  # Any: JSON
    """Return temporary limits as a row holds them: `{"limit", "until"}`, the instant as text of ISO 8601 in UTC."""
    return [
        {
            "limit": _limit_to_json(each.limit),
            "until": each.until.astimezone(UTC).isoformat().replace("+00:00", "Z"),
        }
        for each in limits
    ]


def temporary_from_json(items: Iterable[dict[str, Any]]) -> tuple[TemporaryLimit, ...]:  # Any: JSON
    """Return the temporary limits of a row, those that have expired included."""
    return tuple(
        TemporaryLimit(
            limit=Limit(**_with_enums(item["limit"])), until=datetime.fromisoformat(item["until"])
        )
        for item in items
    )


def resets_to_json(resets: Iterable[CounterReset]) -> list[dict[str, Any]]:  # Any: JSON
    """Return resets as a row holds them: keyword arguments of the contract's `CounterReset`."""
    return [
        {
            "unit": int(reset.unit),
            "window": int(reset.window),
            "reset_generation": reset.reset_generation,
        }
        for reset in resets
    ]


def resets_from_json(items: Iterable[dict[str, Any]]) -> tuple[CounterReset, ...]:  # Any: JSON
    """Return the resets of a row."""
    return tuple(CounterReset(**_with_enums(item)) for item in items)


def limit_set_of(row: SubjectLimits | None) -> SubjectLimitSet:
    """Return everything that a row holds, what has expired included; without a row, nothing."""
    if row is None:
        return SubjectLimitSet()
    return SubjectLimitSet(
        limits=limits_from_json(row.limits),
        temporary=temporary_from_json(row.temporary_limits),
        resets=resets_from_json(row.resets),
    )


def put_limit_set(row: SubjectLimits, limit_set: SubjectLimitSet) -> None:
    """Make a row hold that, in place of what it held."""
    row.limits = limits_to_json(limit_set.limits)
    row.temporary_limits = temporary_to_json(limit_set.temporary)
    row.resets = resets_to_json(limit_set.resets)


def _limit_to_json(limit: Limit) -> dict[str, Any]:  # Any: JSON
    item = {**asdict(limit), "unit": int(limit.unit), "window": int(limit.window)}
    return {name: value for name, value in item.items() if value or name not in _OF_RATES}


def _with_enums(item: dict[str, Any]) -> dict[str, Any]:  # Any: JSON
    return {**item, "unit": LimitUnit(item["unit"]), "window": LimitWindow(item["window"])}


class SubjectLimitRows(NamedRows[SubjectLimits]):
    """The limits of subjects within one session; a row's name is the subject's: `user:acme/alice`."""

    def __init__(self, session: AsyncSession) -> None:
        super().__init__(session, SubjectLimits, "limits of")

    async def find_for_change(self, subject: SubjectName) -> SubjectLimits | None:
        """Return a subject's row and keep others from changing it, or None."""
        found = await self.find(str(subject))
        return await self.get_for_change(str(subject)) if found else None

    async def of(self, subject: SubjectName) -> SubjectLimitSet:
        """Return everything that is set for a subject, what has expired included."""
        return limit_set_of(await self.find(str(subject)))

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
