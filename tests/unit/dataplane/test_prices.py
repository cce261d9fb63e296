from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from dataplane.domain.calls import Usage
from dataplane.domain.patterns import matches
from dataplane.domain.prices import Price, PriceBook, PriceEdition, cost_of, upper_cost
from tests.unit.dataplane.configuration import price

NAMES = st.sampled_from(["a", "ab", "abc", "b", "abcd", "ba"])
PATTERNS = NAMES | st.sampled_from(["*", "a*", "ab*", "abc*", "*c", "a*c", "b*"])
TOKENS = st.integers(0, 10**7)
RATES = st.integers(0, 10**12)


@st.composite
def books(draw: st.DrawFn) -> list[Price]:
    rows = draw(
        st.lists(
            st.tuples(PATTERNS, st.sampled_from(["p", "kind"]), st.sampled_from([0, 100, 200])),
            max_size=8,
        )
    )
    return [
        price(model, of, effective_from_ms=start, price_id=f"{index}")
        for index, (model, of, start) in enumerate(rows)
    ]


def reference(prices: list[Price], model: str, now_ms: int) -> tuple[object, ...] | None:
    """Return provider, pattern and start of the price that binds, by the rule's own words."""
    for of in ("p", "kind"):
        fit = [
            each
            for each in prices
            if each.provider == of
            and each.effective_from_ms <= now_ms
            and matches(each.model, model)
        ]
        exact = [each for each in fit if "*" not in each.model]
        if exact or fit:
            longest = max(len(each.model.split("*")[0]) for each in exact or fit)
            best = [each for each in exact or fit if len(each.model.split("*")[0]) == longest]
            first = min(each.model for each in best)
            start = max(each.effective_from_ms for each in best if each.model == first)
            return of, first, start
    return None


@given(books(), NAMES, st.sampled_from([0, 99, 100, 150, 200, 999]))
def test_the_price_that_binds_is_the_references(
    prices: list[Price], model: str, now_ms: int
) -> None:
    found = PriceBook(prices).find(("p", "kind"), model, now_ms)

    expected = reference(prices, model, now_ms)
    assert (found and (found.provider, found.model, found.effective_from_ms)) == expected


@given(books(), NAMES)
def test_the_order_of_prices_does_not_matter(prices: list[Price], model: str) -> None:
    forward = PriceBook(prices).find(("p", "kind"), model, 150)
    backward = PriceBook(reversed(prices)).find(("p", "kind"), model, 150)

    assert forward == backward


def test_a_cost_is_rounded_up_once_and_not_per_class() -> None:
    one_each = Usage(4, 1, 1, 1, 1, 1)
    cheap = price(input=1, output=1, cache_read=1, cache_write_5m=1, cache_write_1h=1)

    assert cost_of(one_each, cheap) == 1
    assert cost_of(Usage(), cheap) == 0
    assert cost_of(Usage(), price(request_nanousd=7)) == 7


@given(TOKENS, TOKENS, TOKENS, TOKENS, TOKENS, st.tuples(*[RATES] * 5), st.integers(0, 10**9))
def test_no_split_of_the_input_costs_more_than_the_upper_bound(
    uncached: int, read: int, short: int, long: int, output: int, rates: tuple[int, ...], fee: int
) -> None:
    total = uncached + read + short + long
    names = ("input", "output", "cache_read", "cache_write_5m", "cache_write_1h")
    changes: dict[str, Any] = dict(zip(names, rates, strict=True))
    at = price(request_nanousd=fee, **changes)
    usage = Usage(total, uncached, read, short, long, output)

    assert fee <= cost_of(usage, at) <= upper_cost(total, output, at)


@given(TOKENS, TOKENS, RATES)
def test_a_cost_is_never_below_the_exact_amount_nor_a_unit_above(
    reads: int, writes: int, rate: int
) -> None:
    at = price(input=rate, output=rate)

    cost = cost_of(Usage(reads, reads, output_tokens=writes), at)

    exact = (reads + writes) * rate
    assert exact <= cost * 1_000_000 < exact + 1_000_000


@given(
    st.lists(st.tuples(st.integers(0, 5), st.sampled_from(["m", "m-1", "m*", "*"])), max_size=20)
)
def test_a_book_that_is_changed_price_by_price_finds_what_one_of_all_of_them_finds(
    changes: list[tuple[int, str]],
) -> None:
    books, prices = [PriceBook()], dict[int, Price]()
    for number, (price_id, model) in enumerate(changes):
        edition = PriceEdition(books[-1])
        if price_id in prices:
            edition.remove(prices.pop(price_id))
        else:
            added = price(model, price_id=str(price_id), effective_from_ms=number % 3)
            prices[price_id] = added
            edition.put(added)
        books.append(edition.done())

    at_once = PriceBook(prices.values())
    for model in ("m", "m-1", "m-2", "x"):
        for now_ms in range(4):
            assert books[-1].find(["p"], model, now_ms) is at_once.find(["p"], model, now_ms)
    assert sorted(books[-1].exact_models(["p"])) == sorted(at_once.exact_models(["p"]))
    assert books[0].find(["p"], "m", 9) is None


def test_a_book_without_a_change_is_the_same_book() -> None:
    book = PriceBook([price()])

    assert PriceEdition(book).done() is book
