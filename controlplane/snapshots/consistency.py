"""Which references of a configuration resolve to nothing.

The graph is kept up to date resource by resource, so that a change of one key in a configuration
of a hundred thousand costs a handful of dictionary look-ups and not a walk over all of them.
Pure: no I/O, no clock.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from controlplane.snapshots.references import ResourceKey


@dataclass(frozen=True, slots=True, order=True)
class DanglingReference:
    """A reference to a resource that does not exist."""

    source: ResourceKey
    target: ResourceKey

    def __str__(self) -> str:
        return f"{self.source} refers to {self.target}, which does not exist"


class ReferenceGraph:
    """Who refers to whom, and which of the targets are missing."""

    def __init__(self) -> None:
        self._targets: dict[ResourceKey, tuple[ResourceKey, ...]] = {}
        self._sources: dict[ResourceKey, set[ResourceKey]] = {}
        self._missing: set[ResourceKey] = set()
        self._keys: dict[ResourceKey, ResourceKey] = {}

    def put(self, source: ResourceKey, targets: Iterable[ResourceKey]) -> None:
        """Add `source`, or replace what it refers to."""
        self._unlink(source)
        source = self._keys.setdefault(source, source)
        # A hundred thousand keys refer to one router: they share its name too.
        self._targets[source] = tuple(map(self.known, targets))
        self._missing.discard(source)
        for target in self._targets[source]:
            sources = self._sources.get(target)
            if sources is None:
                self._sources[target] = {source}
            else:
                sources.add(source)
            if target not in self._targets:
                self._missing.add(target)

    def remove(self, source: ResourceKey) -> None:
        """Take `source` out; what refers to it dangles from now on. Unknown ones are ignored."""
        self._unlink(source)
        self._keys.pop(source, None)
        if self._targets.pop(source, None) is not None and source in self._sources:
            self._missing.add(source)

    def known(self, key: ResourceKey) -> ResourceKey:
        """Return the equal key that is in the graph already, so that only one is kept; `key` itself if there is none."""
        return self._keys.get(key, key)

    def find_targets(self, source: ResourceKey) -> tuple[ResourceKey, ...] | None:
        """Return what `source` refers to; None when it does not exist."""
        return self._targets.get(source)

    def targets_of(self, source: ResourceKey) -> tuple[ResourceKey, ...]:
        """Return what `source` refers to; nothing when it is unknown."""
        return self._targets.get(source, ())

    def sources_of(self, target: ResourceKey) -> tuple[ResourceKey, ...]:
        """Return what refers to `target`."""
        return tuple(self._sources.get(target, ()))

    def dangling(self, at_most: int = 20) -> list[DanglingReference]:
        """Return references that resolve to nothing, in order, at most so many."""
        found = (
            DanglingReference(source, target)
            for target in self._missing
            for source in self._sources[target]
        )
        return sorted(found)[:at_most]

    def _unlink(self, source: ResourceKey) -> None:
        for target in self._targets.get(source, ()):
            sources = self._sources.get(target)
            if sources is None:
                continue
            sources.discard(source)
            if not sources:
                del self._sources[target]
                self._missing.discard(target)
