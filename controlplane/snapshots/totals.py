"""What the resources of each owner amount to, now and at former revisions.

Digests are sums, so the digest of any scope is the sum of its owners'. A node that comes back names the digest of a former
revision; whether that is what the revision had tells a node that may be sent changes only from one that is damaged.
"""

from bisect import bisect_left
from collections.abc import Iterable, Mapping
from operator import itemgetter
from typing import Final

import msgspec

from controlplane.domain.digest import digest_bytes, with_resource, without_resource
from controlplane.snapshots.scopes import SHARED, Scope

# Far more changes than happen while a node is away and will be sent changes only; older digests are not compared.
KNOWN_REVISIONS: Final = 4_096

_REVISION: Final = itemgetter(0)


class Totals(msgspec.Struct, frozen=True, gc=False):
    """Sums over resources: of their hashes (modulo 2^256), their number, the bytes of their payloads."""

    digest_sum: int = 0
    count: int = 0
    payload_bytes: int = 0

    @property
    def digest(self) -> bytes:
        """The digest as it stands in a position."""
        return digest_bytes(self.digest_sum)

    def with_one(self, resource_hash: int, payload_bytes: int) -> "Totals":
        """Return the sums with one resource more."""
        return Totals(
            with_resource(self.digest_sum, resource_hash),
            self.count + 1,
            self.payload_bytes + payload_bytes,
        )

    def without_one(self, resource_hash: int, payload_bytes: int) -> "Totals":
        """Return the sums with one resource less."""
        return Totals(
            without_resource(self.digest_sum, resource_hash),
            self.count - 1,
            self.payload_bytes - payload_bytes,
        )


NOTHING: Final = Totals()


def sum_of(parts: Iterable[Totals]) -> Totals:
    """Return the totals of all parts together."""
    digest_sum = count = payload_bytes = 0
    for part in parts:
        digest_sum = with_resource(digest_sum, part.digest_sum)
        count += part.count
        payload_bytes += part.payload_bytes
    return Totals(digest_sum, count, payload_bytes)


class FormerDigests:
    """The digests of the last `KNOWN_REVISIONS` states before the present one, for any scope."""

    def __init__(self) -> None:
        self._former: list[tuple[int, int, dict[str, int]]] = []
        """Rising: a revision, its sum over everything, and the sums that its successor changed, as they were."""

    def note(self, revision: int, everything: int, changed: dict[str, int]) -> None:
        """Note how a state ended: its revision, its sum, and by owner the sums that the next one replaces."""
        self._former.append((revision, everything, changed))
        if len(self._former) > 2 * KNOWN_REVISIONS:
            del self._former[:KNOWN_REVISIONS]

    def digest_at(self, revision: int, scope: Scope, present: Mapping[str, Totals]) -> bytes | None:
        """Return the digest that `scope` had at a former revision; None when it is not known.

        `present` is what the owners have at the newest state.
        """
        start = bisect_left(self._former, revision, key=_REVISION)
        if start == len(self._former) or self._former[start][0] != revision:
            return None
        if not scope:
            return digest_bytes(self._former[start][1])
        owners = {SHARED, *scope}
        sums = {owner: present[owner].digest_sum for owner in owners & present.keys()}
        for _, _, changed in reversed(self._former[start:]):
            sums |= {owner: changed[owner] for owner in owners & changed.keys()}
        return sum_of(Totals(digest_sum) for digest_sum in sums.values()).digest
