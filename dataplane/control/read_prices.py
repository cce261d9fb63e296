"""Prices as a snapshot has them."""

from typing import Any

from tollkeeper.config.v1 import resources_pb2 as pb

from dataplane.control.raw_resources import RawResource, UnusableResourceError
from dataplane.domain.prices import Price


def read_price(each: RawResource, message: pb.Price) -> Price:
    """Return a price.

    Raises:
        UnusableResourceError: A rate is negative, or it has none and is not marked as free.
        ValueError: Its start is no time.
    """
    rates = message.rates
    figures = [
        rates.input_nanousd_per_million,
        rates.output_nanousd_per_million,
        rates.request_nanousd,
    ]
    if min(figures) < 0:
        raise UnusableResourceError("a rate is negative")
    if not message.free and max(figures) == 0:
        raise UnusableResourceError("it has no rates and is not marked as free")
    base = rates.input_nanousd_per_million
    return Price(
        price_id=each.resource_id,
        revision=each.revision,
        provider=message.provider,
        model=message.model,
        effective_from_ms=max(0, message.effective_from.ToMilliseconds()),
        input=base,
        output=rates.output_nanousd_per_million,
        # A missing cached rate is the rate of uncached input, never free; writes cost more.
        cache_read=_rate(rates, "cache_read_nanousd_per_million", base),
        cache_write_5m=_rate(rates, "cache_write_5m_nanousd_per_million", -(-base * 5 // 4)),
        cache_write_1h=_rate(rates, "cache_write_1h_nanousd_per_million", base * 2),
        request_nanousd=rates.request_nanousd,
    )


def unusable_price(each: RawResource, message: pb.Price) -> Price:
    """Return what stands for a price that is bad: what it would have priced has none."""
    start = message.effective_from
    return Price(
        price_id=each.resource_id,
        revision=each.revision,
        provider=message.provider,
        model=message.model,
        # By hand: this must not fail, and a start that no calendar has is never reached.
        effective_from_ms=max(0, start.seconds * 1_000 + start.nanos // 1_000_000),
        input=0,
        output=0,
        cache_read=0,
        cache_write_5m=0,
        cache_write_1h=0,
        is_usable=False,
    )


def _rate(rates: Any, name: str, otherwise: int) -> int:  # Any: a field is named by its name
    if not rates.HasField(name):
        return otherwise
    rate: int = getattr(rates, name)
    if rate < 0:
        raise UnusableResourceError("a rate is negative")
    return rate
