"""A price that nobody can charge by: what it matches has no price, whatever else would match."""

from dataclasses import replace

import pytest

from dataplane.domain.prices import Price, PriceBook

_GOOD = Price("good", 1, "openai", "gpt-4o", 0, 1, 1, 1, 1, 1)
_BAD = replace(_GOOD, price_id="bad", is_usable=False)


@pytest.mark.parametrize(
    "other",
    [
        replace(_GOOD, effective_from_ms=5),
        replace(_GOOD, effective_from_ms=10, price_id="a"),
        replace(_GOOD, model="gpt-*"),
        replace(_GOOD, model="*"),
        replace(_GOOD, provider="kind-of-openai"),
    ],
)
def test_no_older_wider_or_later_named_price_stands_in_for_an_unusable_one(other: Price) -> None:
    book = PriceBook([other, replace(_BAD, effective_from_ms=10)])
    assert book.find(["openai", "kind-of-openai"], "gpt-4o", 10) is None


def test_an_unusable_price_counts_from_its_start_only() -> None:
    book = PriceBook([_GOOD, replace(_BAD, effective_from_ms=10)])
    assert book.find(["openai"], "gpt-4o", 9) == _GOOD


def test_a_price_that_is_newer_or_more_exact_than_an_unusable_one_counts() -> None:
    newer = replace(_GOOD, effective_from_ms=20)
    assert PriceBook([newer, _BAD]).find(["openai"], "gpt-4o", 20) == newer
    assert PriceBook([_GOOD, replace(_BAD, model="gpt-*")]).find(["openai"], "gpt-4o", 0) == _GOOD


def test_an_unusable_pattern_denies_what_a_wider_one_would_price() -> None:
    book = PriceBook([replace(_GOOD, model="*"), replace(_BAD, model="gpt-*")])
    assert book.find(["openai"], "gpt-4o", 0) is None
    assert book.find(["openai"], "o3", 0) is not None
