"""Limits of subjects, and whose calls are to be looked at again because of them."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from tollkeeper.config.v1 import resources_pb2 as pb

from dataplane.control.compiling.draft import Draft
from dataplane.control.compiling.state import Limits
from dataplane.control.compiling.transition import Touched
from dataplane.control.holdings import Key
from dataplane.control.read_limits import read_limits
from dataplane.domain.layer_bounds import LimitShapes, are_alike
from dataplane.domain.limiting import SubjectKind
from dataplane.domain.principals import SubjectLimits
from dataplane.domain.sharded_map import MapEdition

_NO_LIMITS: Final = SubjectLimits()
_CREDENTIALS: Final = {
    SubjectKind.KEY.value: pb.RESOURCE_KIND_API_KEY,
    SubjectKind.DEVICE.value: pb.RESOURCE_KIND_DEVICE,
}


@dataclass(slots=True)
class LimitsDraft:
    """Limits in the making.

    Attributes:
        otherwise_limited: Subjects of whom another number of limits can apply than before.
    """

    draft: Draft
    now_ms: int
    otherwise_limited: list[str] = field(default_factory=list)
    _ends_ms: MapEdition[str, int] = field(init=False)
    _shapes: LimitShapes = field(init=False)
    _met_by_calls: dict[str, set[str]] = field(init=False)

    def __post_init__(self) -> None:
        origin = self.draft.origin.limits
        self._ends_ms = MapEdition(origin.ends_ms)
        self._shapes = origin.shapes
        self._met_by_calls = {}

    async def build(self) -> Limits:
        """Read again what is touched, and what held for a time that is over."""
        draft, origin = self.draft, self.draft.origin.limits
        touched = draft.touched(pb.RESOURCE_KIND_SUBJECT_LIMITS)
        for part in origin.ends_ms.parts():
            for subject, ends_ms in part.items():
                if ends_ms <= self.now_ms:
                    touched.add((pb.RESOURCE_KIND_SUBJECT_LIMITS, subject))
            await draft.slices.breathe()
        if touched:
            self._shapes = origin.shapes.copy()
        by_subject = await draft.rebuilt(
            pb.RESOURCE_KIND_SUBJECT_LIMITS,
            pb.SubjectLimits,
            origin.by_subject,
            lambda each, message: read_limits(each, message, self.now_ms),
            draft.refuse,
            changed=self._changed,
        )
        return Limits(
            by_subject,
            self._ends_ms.done(),
            self._shapes,
            self._ids(SubjectKind.ENDPOINT, origin.endpoints),
            self._ids(SubjectKind.MODEL, origin.models),
        )

    async def callers_otherwise_limited(self) -> Touched:
        """Return keys and devices that another number of limits can apply to, by their own subjects."""
        found, draft = Touched(), self.draft
        for subject in self.otherwise_limited:
            kind, _, subject_id = subject.partition(":")
            users: Iterable[Key] = ()
            if kind in _CREDENTIALS:
                found.add((_CREDENTIALS[kind], subject_id))
            elif kind == SubjectKind.USER:
                users = ((pb.RESOURCE_KIND_USER, subject_id),)
            elif kind == SubjectKind.ORGANIZATION:
                users = draft.referrers_of(pb.RESOURCE_KIND_ORGANIZATION, subject_id)
            for user in users:
                for key in draft.referrers_of(*user):
                    found.add(key)
                    await draft.slices.breathe()
                await draft.slices.breathe()
            await draft.slices.breathe()
        return found

    async def _changed(
        self, subject: str, before: SubjectLimits | None, after: SubjectLimits | None
    ) -> None:
        self._shapes.note(subject, before, after)
        if not are_alike(before or _NO_LIMITS, after or _NO_LIMITS):
            self.otherwise_limited.append(subject)
        if after is not None and after.temporary:
            self._ends_ms.put(subject, min(each.until_ms for each in after.temporary))
        else:
            self._ends_ms.discard(subject)
        kind, _, subject_id = subject.partition(":")
        if (before is None) != (after is None) and kind in (
            SubjectKind.ENDPOINT,
            SubjectKind.MODEL,
        ):
            self._met_by_calls.setdefault(kind, set()).add(subject_id)

    def _ids(self, kind: SubjectKind, origin: frozenset[str]) -> frozenset[str]:
        # Whatever is among them came or went.
        return origin ^ self._met_by_calls.get(kind, frozenset())
