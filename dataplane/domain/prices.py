"""Prices of models, and what a request costs."""

from bisect import bisect_left, insort
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar

from dataplane.domain.calls import Usage
from dataplane.domain.patterns import literal_prefix, matches
from dataplane.domain.sharded_map import MapEdition, ShardedMap

TOKENS_PER_PRICE_UNIT: Final = 1_000_000
K = TypeVar("K", bound=Hashable)


@dataclass(frozen=True, slots=True)
class Price:
    """What a model costs at a provider, in nano-USD per million tokens.

    `provider` is a provider's name or kind, `model` a name or a pattern. Cached rates are
    already resolved: a missing one was replaced when the price was read. `effective_from_ms`
    is Unix milliseconds, 0 for always. One that is not usable says only that what it matches has
    no price: nobody knows which was meant.
    """

    price_id: str
    revision: int
    provider: str
    model: str
    effective_from_ms: int
    input: int
    output: int
    cache_read: int
    cache_write_5m: int
    cache_write_1h: int
    request_nanousd: int = 0
    is_usable: bool = True

    @property
    def dearest_input(self) -> int:
        """Return the highest rate that an input token can be charged at."""
        return max(self.input, self.cache_read, self.cache_write_5m, self.cache_write_1h)


def cost_of(usage: Usage, price: Price) -> int:
    """Return the cost of `usage` in nano-USD, rounded up once at the end.

    Rounding up once, after summing, keeps the charge of a request independent of how its tokens
    were split and never lower than the exact amount.
    """
    exact = (
        usage.input_uncached_tokens * price.input
        + usage.cache_read_tokens * price.cache_read
        + usage.cache_write_5m_tokens * price.cache_write_5m
        + usage.cache_write_1h_tokens * price.cache_write_1h
        + usage.output_tokens * price.output
    )
    return -(-exact // TOKENS_PER_PRICE_UNIT) + price.request_nanousd


def upper_cost(input_upper_tokens: int, output_cap_tokens: int, price: Price) -> int:
    """Return the most, in nano-USD, that so many tokens can cost."""
    exact = input_upper_tokens * price.dearest_input + output_cap_tokens * price.output
    return -(-exact // TOKENS_PER_PRICE_UNIT) + price.request_nanousd


class PriceBook:
    """All prices, found by provider, then by exact model, longest prefix, latest start."""

    __slots__ = ("_exact", "_patterns")

    def __init__(self, prices: Iterable[Price] = ()) -> None:
        """Hold `prices`, all in one go."""
        self._exact: ShardedMap[tuple[str, str], Sequence[Price]] = ShardedMap()
        self._patterns: ShardedMap[str, Sequence[Price]] = ShardedMap()
        edition = PriceEdition(self)
        for price in prices:
            edition.put(price)
        book = edition.done()
        self._exact, self._patterns = book._exact, book._patterns

    @classmethod
    def _of(
        cls,
        exact: ShardedMap[tuple[str, str], Sequence[Price]],
        patterns: ShardedMap[str, Sequence[Price]],
    ) -> "PriceBook":
        it = cls.__new__(cls)
        it._exact, it._patterns = exact, patterns
        return it

    def find(self, providers: Sequence[str], model: str, now_ms: int) -> Price | None:
        """Return the price of `model` at the first of `providers` that has one now, if usable."""
        price = self._first(providers, model, now_ms)
        return price if price is not None and price.is_usable else None

    def exact_models(self, providers: Sequence[str]) -> Iterator[str]:
        """Yield the models that are priced by name at any of `providers`."""
        return (model for provider, model in self._exact if provider in providers)

    def _first(self, providers: Sequence[str], model: str, now_ms: int) -> Price | None:
        for provider in providers:
            for price in self._exact.get((provider, model), ()):
                if price.effective_from_ms <= now_ms:
                    return price
            for price in self._patterns.get(provider, ()):
                if price.effective_from_ms <= now_ms and matches(price.model, model):
                    return price
        return None


class PriceEdition:
    """A changed copy of a book in the making; the book stays as it is.

    One step costs as much as the other prices of the same model, or patterns of the same provider.
    """

    __slots__ = ("_exact", "_origin", "_patterns")

    def __init__(self, origin: PriceBook) -> None:
        """Begin with `origin`."""
        self._origin = origin
        self._exact = _Rows(origin._exact, _latest_first)
        self._patterns = _Rows(origin._patterns, _longest_prefix_first)

    def put(self, price: Price) -> None:
        """Add a price, of which there is none with its id."""
        if "*" in price.model:
            self._patterns.add(price.provider, price)
        else:
            self._exact.add((price.provider, price.model), price)

    def remove(self, price: Price) -> None:
        """Take out a price that is there."""
        if "*" in price.model:
            self._patterns.remove(price.provider, price)
        else:
            self._exact.remove((price.provider, price.model), price)

    def done(self) -> PriceBook:
        """Return what came of it: the very book that it began with if nothing was changed."""
        exact, patterns = self._exact.done(), self._patterns.done()
        if exact is self._origin._exact and patterns is self._origin._patterns:
            return self._origin
        return PriceBook._of(exact, patterns)


class _Rows(Generic[K]):
    """Sorted rows of prices, of which those that change are copied once."""

    __slots__ = ("_edition", "_own", "_rank")

    def __init__(
        self,
        origin: ShardedMap[K, Sequence[Price]],
        rank: Callable[[Price], tuple[Any, ...]],  # Any: mixed, but comparable place by place
    ) -> None:
        self._edition = MapEdition[K, Sequence[Price]](origin)
        self._own: dict[K, list[Price]] = {}
        self._rank = rank

    def add(self, key: K, price: Price) -> None:
        insort(self._owned(key), price, key=self._rank)

    def remove(self, key: K, price: Price) -> None:
        row = self._owned(key)
        # Ids are among what prices are sorted by: no two have the same place.
        del row[bisect_left(row, self._rank(price), key=self._rank)]
        if not row:
            del self._own[key]
            self._edition.discard(key)

    def done(self) -> ShardedMap[K, Sequence[Price]]:
        return self._edition.done()

    def _owned(self, key: K) -> list[Price]:
        row = self._own.get(key)
        if row is None:
            row = self._own[key] = list(self._edition.get(key) or ())
            self._edition.put(key, row)
        return row


def _latest_first(price: Price) -> tuple[int, bool, str]:
    # Of two that start together the unusable one counts: in doubt, deny.
    return (-price.effective_from_ms, price.is_usable, price.price_id)


def _longest_prefix_first(price: Price) -> tuple[int, str, int, bool, str]:
    return (-len(literal_prefix(price.model)), price.model, *_latest_first(price))
