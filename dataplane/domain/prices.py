"""Prices of models, and what a request costs."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from dataplane.domain.calls import Usage
from dataplane.domain.patterns import literal_prefix, matches

TOKENS_PER_PRICE_UNIT: Final = 1_000_000


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

    def __init__(self, prices: Iterable[Price]) -> None:
        self._exact: dict[tuple[str, str], list[Price]] = {}
        self._patterns: dict[str, list[Price]] = {}
        for price in prices:
            if "*" in price.model:
                self._patterns.setdefault(price.provider, []).append(price)
            else:
                self._exact.setdefault((price.provider, price.model), []).append(price)
        for rows in self._exact.values():
            rows.sort(key=_latest_first)
        for rows in self._patterns.values():
            rows.sort(key=_longest_prefix_first)

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


def _latest_first(price: Price) -> tuple[int, bool, str]:
    # Of two that start together the unusable one counts: in doubt, deny.
    return (-price.effective_from_ms, price.is_usable, price.price_id)


def _longest_prefix_first(price: Price) -> tuple[int, str, int, bool, str]:
    return (-len(literal_prefix(price.model)), price.model, *_latest_first(price))
