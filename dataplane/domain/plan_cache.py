"""Layer plans that were compiled, for whoever calls again.

A plan follows from the service's defaults, the limits, the tiers, its caller and the circumstances of a call:
snapshots that have the same of the first three may share what was compiled for any of them. A hundred thousand
plans take tens of milliseconds to free in one go, so they lie in parts of some hundreds, which can be let go of
one after the other.
"""

from collections.abc import Hashable
from typing import Final, Generic, TypeVar

from dataplane.domain.limiting import LayerPlan

# Plans of callers in circumstances: about 4 KB each with what the limiter keeps of them.
MOST_PLANS: Final = 10_000
# With a hundred thousand callers a part has some hundreds, which are freed in less than a millisecond.
_PARTS: Final = 512
_MASK: Final = _PARTS - 1

K = TypeVar("K", bound=Hashable)


class PlanCache(Generic[K]):
    """Plans by whatever they are for.

    Attributes:
        most: How many are held; beyond it a part of them is forgotten, each in its turn: a caller picks no
            victim, and whoever still calls is back with the next request.
    """

    __slots__ = ("__weakref__", "_length", "_next", "_parts", "most")

    def __init__(self, most: int = MOST_PLANS) -> None:
        """Hold none."""
        self.most: Final = most
        self._parts: list[dict[K, LayerPlan]] = [{} for _ in range(_PARTS)]
        self._length = 0
        self._next = 0

    def __len__(self) -> int:
        return self._length

    def get(self, key: K) -> LayerPlan | None:
        """Return a plan, or None."""
        return self._parts[hash(key) & _MASK].get(key)

    def __setitem__(self, key: K, plan: LayerPlan) -> None:
        part = self._parts[hash(key) & _MASK]
        before = len(part)
        part[key] = plan
        if len(part) != before:
            self._length += 1
            if self._length > self.most:
                self._forget_some()

    def remains(self) -> list[dict[K, LayerPlan]]:
        """Return what it consists of, for whoever lets go of it in steps when nobody has the cache."""
        return self._parts

    def _forget_some(self) -> None:
        while self._length > self.most:
            part = self._parts[self._next]
            self._next = (self._next + 1) & _MASK
            self._length -= len(part)
            part.clear()
