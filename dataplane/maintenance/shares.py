"""Which part of a configuration, and of the ledger, concerns the counters under each hash tag.

Counters that organizations share concern the one tag that has them; those of an organization, its
users, keys and devices the tag of its bucket. Each tag is maintained as if its share were all there
is: going through the whole configuration once for each of 256 tags would take minutes.
"""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from dataplane.domain.counters import CounterKind, CounterName, CounterSum, SubjectName
from dataplane.domain.limiting import SubjectKind
from dataplane.domain.plan_cache import PlanCache
from dataplane.domain.principals import ApiKey, Device, Principal, SubjectLimits
from dataplane.domain.snapshot import Snapshot
from dataplane.domain.sums import SERVICE_KINDS, kind_of
from dataplane.limits.buckets import SHARED_TAG, bucket_tag
from dataplane.maintenance.ports import Ledger

# So many entries are looked at before other work gets its turn: about a millisecond.
_A_TURN: Final = 1_000


@dataclass(frozen=True, slots=True, eq=False)
class Share:
    """What concerns one tag.

    Attributes:
        snapshot: The configuration of its callers; of the shared tag all of it.
        subjects: Whom its counters count; None: every subject of the service-wide kinds.
    """

    snapshot: Snapshot
    subjects: tuple[SubjectName, ...] | None

    def has_kind(self, kind: SubjectKind) -> bool:
        """Return whether counters of such subjects are under the tag at all."""
        return (kind in SERVICE_KINDS) == (self.subjects is None)


@dataclass(slots=True)
class _Bucket:
    """A share in the making."""

    keys: dict[bytes, ApiKey] = field(default_factory=dict)
    devices: dict[bytes, Device] = field(default_factory=dict)
    limits: dict[str, SubjectLimits] = field(default_factory=dict)
    subjects: dict[SubjectName, None] = field(default_factory=dict)

    def add(self, principal: Principal) -> None:
        user = principal.user
        organization_id = user.organization.organization_id
        self.subjects[SubjectName(SubjectKind.ORGANIZATION, organization_id)] = None
        self.subjects[SubjectName(SubjectKind.USER, user.user_id)] = None
        self.subjects[SubjectName(principal.kind, principal.principal_id)] = None


async def shares_of(snapshot: Snapshot) -> dict[str, Share]:
    """Return the share of each tag that a configuration has callers for, and that of the shared one.

    It is looked through in slices of a few milliseconds.
    """
    buckets: dict[str, _Bucket] = defaultdict(_Bucket)
    for number, (digest, key) in enumerate(snapshot.keys_by_sha256.items(), start=1):
        bucket = buckets[_tag_of(key.principal)]
        bucket.keys[digest] = key
        bucket.add(key.principal)
        await _turn(number)
    for number, (digest, device) in enumerate(snapshot.devices_by_sha256.items(), start=1):
        if device.principal is not None:
            bucket = buckets[_tag_of(device.principal)]
            bucket.devices[digest] = device
            bucket.add(device.principal)
        await _turn(number)
    await _share_limits(snapshot, buckets)
    shares = {tag: _share(snapshot, bucket) for tag, bucket in buckets.items()}
    shares[SHARED_TAG] = Share(snapshot, None)
    return shares


def nobodys_share(snapshot: Snapshot) -> Share:
    """Return the share of a bucket without callers."""
    return _share(snapshot, _Bucket())


async def _share_limits(snapshot: Snapshot, buckets: Mapping[str, _Bucket]) -> None:
    """Give each bucket what is configured for its subjects."""
    tags = {subject: tag for tag, bucket in buckets.items() for subject in bucket.subjects}
    for number, (name, limits) in enumerate(snapshot.limits.items(), start=1):
        tag = tags.get(SubjectName(kind_of(name), name.partition(":")[2]))
        if tag is not None:
            buckets[tag].limits[name] = limits
        await _turn(number)


def _share(snapshot: Snapshot, bucket: _Bucket) -> Share:
    part = replace(
        snapshot,
        keys_by_sha256=bucket.keys,
        devices_by_sha256=bucket.devices,
        limits=bucket.limits,
        # Plans of their own: those of the whole have layers that are not here.
        _plans=PlanCache(),
        _call_plans=PlanCache(),
    )
    return Share(part, tuple(bucket.subjects))


def _tag_of(principal: Principal) -> str:
    return bucket_tag(principal.user.organization.organization_id)


async def _turn(number: int) -> None:
    if number % _A_TURN == 0:
        await asyncio.sleep(0)


class ShareLedger:
    """The ledger as far as it concerns one tag."""

    def __init__(self, ledger: Ledger, share: Callable[[], Share]) -> None:
        """Ask `ledger`; `share` returns the present one."""
        self._ledger = ledger
        self._share = share

    async def sums(self, counters: Sequence[CounterName]) -> list[int]:
        """Return the sums of `counters`: whoever asks by name has found them under the tag."""
        return await self._ledger.sums(counters)

    async def list_sums(
        self,
        kinds: Collection[CounterKind],
        period_ids: Collection[str],
        subjects: Sequence[SubjectName] = (),
    ) -> AsyncIterator[list[CounterSum]]:
        """Yield every sum other than 0 that concerns the tag; as `Ledger.list_sums`."""
        share = self._share()
        own_kinds = [each for each in kinds if share.has_kind(each.subject_kind)]
        named: Sequence[SubjectName] = [
            each for each in subjects if share.has_kind(each.subject_kind)
        ]
        if share.subjects is not None:
            known = frozenset(share.subjects)
            named = [each for each in named if each in known] if subjects else share.subjects
        is_of_all = share.subjects is None and not subjects
        if own_kinds and (named or is_of_all):
            async for sums in self._ledger.list_sums(own_kinds, period_ids, named):
                yield sums

    async def known(self, request_ids: Sequence[str]) -> set[str]:
        """Return which of these requests the ledger has."""
        return await self._ledger.known(request_ids)

    async def reporters(self) -> set[str]:
        """Return the ids of the data planes that are connected to a control plane."""
        return await self._ledger.reporters()
