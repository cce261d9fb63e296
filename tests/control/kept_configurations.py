"""Configurations that are kept on a disk, and what the next process finds there."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from dataplane.control.holdings import Change, Holdings, Key
from dataplane.control.kept import Kept, KeptRevocation
from dataplane.control.last_known_good import LastKnownGood
from dataplane.control.raw_resources import RawResource, RawSecret
from dataplane.domain.digest import digest_of, resource_hash
from dataplane.domain.secret import Secret
from dataplane.domain.snapshot import Position
from tests.control.usage_events import until

NODE_KEY = bytes(range(32))
EPOCH = "epoch-1"
NOW_MS = 1_800_000_000_000
KIND = 3

State = tuple[Position, Mapping[Key, RawResource], Mapping[str, RawSecret]]


def key_of(name: str) -> Key:
    """Return what a resource is found by."""
    return KIND, name


@dataclass
class Author:
    """Makes changes as transfers would, and takes them over as the watch does."""

    holdings: Holdings = field(default_factory=Holdings)
    epoch: str = EPOCH

    def change(
        self,
        put: Mapping[str, bytes] | None = None,
        removed: Iterable[str] = (),
        secrets: Mapping[str, bytes] | None = None,
        dropped: Iterable[str] = (),
        *,
        is_everything: bool = False,
    ) -> Change:
        """Return the next change, which is in force; a name's payload may be anything."""
        held, revision = self.holdings, self.holdings.position.revision + 1
        is_everything = is_everything or held.is_empty
        raw = {
            key_of(name): RawResource(KIND, name, revision, payload)
            for name, payload in (put or {}).items()
        }
        hashes = {
            key: resource_hash(each.kind, each.resource_id, each.revision, each.payload)
            for key, each in raw.items()
        }
        gone = frozenset(map(key_of, removed))
        before = {} if is_everything else held.hashes
        after = {key: value for key, value in before.items() if key not in gone} | hashes
        change = Change(
            position=Position(self.epoch, revision, digest_of(after.values())),
            put=raw,
            removed=gone,
            secrets={
                name: RawSecret(name, revision, Secret(value))
                for name, value in (secrets or {}).items()
            },
            dropped_secrets=frozenset(dropped),
            hashes=hashes,
            is_everything=is_everything,
        )
        held.commit(change)
        return change

    @property
    def state(self) -> State:
        """Return what is in force now."""
        held = self.holdings
        return held.position, dict(held.resources), dict(held.secrets)


def state_of(kept: Kept | None) -> State | None:
    """Return what was kept."""
    if kept is None:
        return None
    assert kept.change is not None
    assert kept.change.is_everything
    assert kept.change.hashes.keys() == kept.change.put.keys()
    return kept.change.position, kept.change.put, kept.change.secrets


def keeper(directory: Path, node_key: bytes = NODE_KEY, now_ms: int = NOW_MS) -> LastKnownGood:
    """Return what keeps configurations in `directory`."""
    return LastKnownGood(directory, node_key, lambda: now_ms)


async def everything(kept: Kept) -> bool:
    """Take whatever configuration was kept."""
    return kept.change is not None


async def opened(
    directory: Path, node_key: bytes = NODE_KEY, now_ms: int = NOW_MS
) -> LastKnownGood:
    """Return what goes on keeping in `directory`."""
    started = keeper(directory, node_key, now_ms)
    await started.load(everything)
    return started


async def loaded(directory: Path, node_key: bytes = NODE_KEY, now_ms: int = NOW_MS) -> Kept | None:
    """Return what the next process finds."""
    reader = keeper(directory, node_key, now_ms)
    kept = await reader.load(everything)
    await reader.aclose()
    return kept


async def on_disk(lkg: LastKnownGood) -> None:
    """Return when everything that was to be kept is."""
    await until(lambda: not lkg.figures.is_behind)


def revocation(
    subject_id: str, revision: int = 1, kind: str = "key", epoch: str = EPOCH, at_ms: int = NOW_MS
) -> KeptRevocation:
    """Return a revocation."""
    return KeptRevocation(kind, subject_id, "acme", epoch, revision, at_ms)


def journals(directory: Path) -> list[Path]:
    """Return the journals of generations."""
    return sorted(directory.glob("journal-*"))
