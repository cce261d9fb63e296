"""Prices of some well-known models of the vendors that `tollkeeper dev` may register.

As the vendors' pricing pages listed them (developers.openai.com/api/docs/pricing,
platform.claude.com/docs/en/about-claude/pricing, ai.google.dev/gemini-api/docs/pricing): standard processing, text, prompts of
ordinary length (some models cost more above 200,000 tokens). They are a convenience for a first try and may be out of date:
`tollkeeper price set` corrects them, and prices a model that is not here, which is refused until then.

Cache writes are left out: without a figure they count 1.25 and 2 times input.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from controlplane.cli.endpoints import ProviderKind
from controlplane.cli.money import nanousd_from_usd


@dataclass(frozen=True, slots=True)
class PublicPrice:
    """What a model costs, in nano-USD per million tokens."""

    model: str
    input_nanousd_per_million: int
    cache_read_nanousd_per_million: int
    output_nanousd_per_million: int


def _price(model: str, input_usd: str, cached_usd: str, output_usd: str) -> PublicPrice:
    return PublicPrice(
        model=model,
        input_nanousd_per_million=nanousd_from_usd(input_usd),
        cache_read_nanousd_per_million=nanousd_from_usd(cached_usd),
        output_nanousd_per_million=nanousd_from_usd(output_usd),
    )


PUBLIC_PRICES: Final[Mapping[ProviderKind, tuple[PublicPrice, ...]]] = {
    ProviderKind.OPENAI: (
        _price("gpt-4o", "2.50", "1.25", "10"),
        _price("gpt-4o-mini", "0.15", "0.075", "0.60"),
        _price("gpt-4.1", "2", "0.50", "8"),
        _price("gpt-4.1-mini", "0.40", "0.10", "1.60"),
        _price("gpt-4.1-nano", "0.10", "0.025", "0.40"),
        _price("gpt-5", "1.25", "0.125", "10"),
        _price("gpt-5-mini", "0.25", "0.025", "2"),
        _price("gpt-5-nano", "0.05", "0.005", "0.40"),
        _price("o3", "2", "0.50", "8"),
        _price("o4-mini", "1.10", "0.275", "4.40"),
    ),
    ProviderKind.ANTHROPIC: (
        _price("claude-opus-4-5", "5", "0.50", "25"),
        _price("claude-sonnet-4-5", "3", "0.30", "15"),
        _price("claude-haiku-4-5", "1", "0.10", "5"),
    ),
    ProviderKind.GOOGLE: (
        _price("gemini-2.5-pro", "1.25", "0.125", "10"),
        _price("gemini-2.5-flash", "0.30", "0.03", "2.50"),
        _price("gemini-2.5-flash-lite", "0.10", "0.01", "0.40"),
    ),
}
