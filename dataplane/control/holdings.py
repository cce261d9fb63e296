"""What is in force, as it was received: the bytes, the secrets, and what they add to the digest."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Final

from dataplane.control.raw_resources import RawResource, RawSecret
from dataplane.control.slices import Remains, Slices
from dataplane.domain.digest import sum_of_digest
from dataplane.domain.snapshot import Position

# Kind and id.
Key = tuple[int, str]
# So many entries are taken over in less than a slice; more are prepared aside.
_LARGE: Final = 2_000
_A_PART: Final = 500
NOWHERE: Final = Position("", 0, bytes(32))


@dataclass(frozen=True, slots=True)
class Change:
    """What a transfer does to what is held: always a difference, also for a FULL.

    Attributes:
        position: The position after it; its digest was checked.
        put: Resources that are new or have other bytes.
        removed: What was held and is gone.
        secrets: Secrets that are new or different, by credential id.
        dropped_secrets: Credential ids whose secrets were held and are gone.
        hashes: What each resource of `put` adds to the digest.
        is_everything: Nothing was held before, or it was of another epoch: `put` and `secrets` are all
            there is after it, though some of it may have been held.
        counts: Resources by kind after it; None: they are counted when it is committed.
    """

    position: Position
    put: Mapping[Key, RawResource]
    removed: frozenset[Key]
    secrets: Mapping[str, RawSecret] = field(repr=False)
    dropped_secrets: frozenset[str]
    hashes: Mapping[Key, int] = field(repr=False)
    is_everything: bool
    counts: Mapping[int, int] | None = None


# Resources and hashes as they are after a change.
_Prepared = tuple[Change, dict[Key, RawResource], dict[Key, int]]


@dataclass(slots=True)
class Holdings:
    """What is in force, as received; it has one owner, and changes only in `commit`.

    Attributes:
        position: Where the configuration stands; `NOWHERE` before the first.
        resources: All resources, also those of kinds that this program does not know.
        secrets: Secrets of providers, by credential id.
        hashes: What each resource adds to the digest.
        digest_sum: The digest of `position` as a number.
        counts: How many resources there are of each kind.
    """

    position: Position = NOWHERE
    resources: dict[Key, RawResource] = field(default_factory=dict, repr=False)
    secrets: dict[str, RawSecret] = field(default_factory=dict, repr=False)
    hashes: dict[Key, int] = field(default_factory=dict, repr=False)
    digest_sum: int = 0
    counts: dict[int, int] = field(default_factory=dict)
    _prepared: _Prepared | None = field(default=None, repr=False, compare=False)

    @property
    def is_empty(self) -> bool:
        """Return whether there never was a configuration."""
        return not self.position.config_epoch

    async def prepare(self, change: Change) -> None:
        """Do aside, in slices, what takes long of committing `change`; nothing changes yet.

        What a change of everything holds belongs to the holdings once it is committed: nobody else may use it then.
        """
        if not change.is_everything and len(change.put) < _LARGE and len(change.removed) < _LARGE:
            return
        if (
            change.is_everything
            and isinstance(change.put, dict)
            and isinstance(change.hashes, dict)
        ):
            # Handed over: a copy of a large one is felt, and once more when the garbage collector sees it.
            self._prepared = change, change.put, change.hashes
            return
        slices = Slices()
        resources = dict(change.put) if change.is_everything else self.resources.copy()
        await slices.breathe()
        hashes = dict(change.hashes) if change.is_everything else self.hashes.copy()
        await slices.breathe()
        if not change.is_everything:
            for key, raw in change.put.items():
                resources[key], hashes[key] = raw, change.hashes[key]
                if slices.is_over:
                    await slices.breathe()
            for key in change.removed:
                del resources[key], hashes[key]
                if slices.is_over:
                    await slices.breathe()
        self._prepared = change, resources, hashes

    def commit(self, change: Change) -> None:
        """Take `change` over, whole; it does not await.

        Collections may be replaced or changed in place: whoever keeps one for later copies it.
        """
        prepared, self._prepared = self._prepared, None
        if prepared is not None and prepared[0] is change:
            _, self.resources, self.hashes = prepared
        elif change.is_everything:
            # Copies: the change may still be on its way to the disk when the next one comes.
            self.resources, self.hashes = dict(change.put), dict(change.hashes)
        else:
            for key in change.removed:
                del self.resources[key], self.hashes[key]
            self.resources.update(change.put)
            self.hashes.update(change.hashes)
        if change.is_everything:
            self.secrets = dict(change.secrets)
        else:
            for credential_id in change.dropped_secrets:
                del self.secrets[credential_id]
            self.secrets.update(change.secrets)
        self.position = change.position
        self.digest_sum = sum_of_digest(change.position.digest)
        counts = change.counts
        self.counts = dict(
            Counter(map(itemgetter(0), self.resources)) if counts is None else counts
        )


async def replaced_by(change: Change, held: Holdings) -> list[Remains]:
    """Return what nobody needs once `held` has taken `change` over, to be let go of in slices.

    Of a change of everything that is what was held, which has an end when it is replaced: nothing here.
    """
    if change.is_everything:
        return []
    slices = Slices()
    # The keys that came along: what is held keeps those that it has.
    remains: list[Remains] = []
    part: list[object] = []
    for keys in (change.put, change.removed):
        for key in keys:
            part.append(key)
            if (old := held.resources.get(key)) is not None:
                part += (old, held.hashes[key])
            # Many small ones: the garbage collector looks through each new list in one go.
            if len(part) >= _A_PART:
                remains.append(part)
                part = []
            if slices.is_over:
                await slices.breathe()
    return [*remains, part]
