"""What makes a price valid. Prices are integers of nano-USD per million units."""

from dataclasses import dataclass

from controlplane.domain.errors import InvalidError


@dataclass(frozen=True, slots=True)
class Rates:
    """The figures of a price; None for a class of tokens that has none of its own."""

    input_nanousd_per_million: int = 0
    output_nanousd_per_million: int = 0
    cache_read_nanousd_per_million: int | None = None
    cache_write_5m_nanousd_per_million: int | None = None
    cache_write_1h_nanousd_per_million: int | None = None
    request_nanousd: int = 0

    @property
    def is_zero(self) -> bool:
        """Say whether nothing would be charged for plain input, output and the request itself."""
        return not (
            self.input_nanousd_per_million
            or self.output_nanousd_per_million
            or self.request_nanousd
        )

    @property
    def has_cache_rate(self) -> bool:
        """Say whether a class of cached tokens costs something."""
        return bool(
            self.cache_read_nanousd_per_million
            or self.cache_write_5m_nanousd_per_million
            or self.cache_write_1h_nanousd_per_million
        )


def check_price(model: str, rates: Rates, *, free: bool) -> None:
    """Check that a price says one thing: it costs something, or it is free by an administrator's word.

    Raises:
        InvalidError: Names the field.
    """
    if "*" in model[:-1]:
        raise InvalidError("a pattern has one * and ends with it", field="price.model")
    if free and (not rates.is_zero or rates.has_cache_rate):
        raise InvalidError("a free model has no rates", field="price.free")
    if not free and rates.is_zero:
        raise InvalidError(
            "give a rate for input, output or requests, or free", field="price.rates"
        )
