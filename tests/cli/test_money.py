from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlplane.cli.money import MOST_NANOUSD, nanousd_from_usd, usd_from_nanousd

amounts = st.integers(min_value=0, max_value=MOST_NANOUSD)


@pytest.mark.parametrize(
    ("text", "nanousd"),
    [
        ("0", 0),
        ("100", 100_000_000_000),
        ("0.15", 150_000_000),
        ("0.05", 50_000_000),
        ("0.000000001", 1),
        ("4.350000000", 4_350_000_000),
        ("9000000", MOST_NANOUSD),
    ],
)
def test_an_amount_of_dollars_is_exact_in_nanodollars(text: str, nanousd: int) -> None:
    assert nanousd_from_usd(text) == nanousd


@pytest.mark.parametrize(
    "text",
    [
        "",
        ".5",
        "5.",
        "-1",
        "+1",
        "1e3",
        "nan",
        "inf",
        "1_000",
        "1,5",
        " 1",
        "1\n",
        "$1",
        "0.0000000001",
        "0.1000000000",
        "9000000.000000001",
        "1" * 400,
        "\u0661",
    ],
)
def test_what_is_no_plain_decimal_amount_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"is not an amount|decimals|more than"):
        nanousd_from_usd(text)


@given(amounts)
def test_every_amount_reads_back_as_it_was_written(nanousd: int) -> None:
    assert nanousd_from_usd(usd_from_nanousd(nanousd)) == nanousd


@given(amounts)
def test_an_amount_agrees_with_decimal_arithmetic(nanousd: int) -> None:
    assert Decimal(usd_from_nanousd(nanousd)) == Decimal(nanousd).scaleb(-9)


@given(st.text(max_size=30))
def test_any_text_is_an_exact_amount_or_a_value_error(text: str) -> None:
    try:
        nanousd = nanousd_from_usd(text)
    except ValueError:
        return
    assert Decimal(text).scaleb(9) == nanousd


def test_a_negative_sum_is_shown_with_its_sign() -> None:
    assert usd_from_nanousd(-1_500_000_000) == "-1.50"
