import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataplane.domain.patterns import literal_prefix, matches

TEXTS = st.text(alphabet="ab.*[", max_size=8)


def reference(pattern: str, name: str) -> bool:
    return re.fullmatch(".*".join(map(re.escape, pattern.split("*"))), name, re.DOTALL) is not None


@given(TEXTS, TEXTS)
def test_a_star_stands_for_any_run_and_everything_else_for_itself(pattern: str, name: str) -> None:
    assert matches(pattern, name) is reference(pattern, name)


@pytest.mark.parametrize(
    ("pattern", "name", "expected"),
    [("gpt-*", "gpt-5", True), ("gpt-*", "GPT-5", False), ("a*a", "a", False), ("", "", True),
     ("*", "", True), ("a*b*a", "aba", True), ("ab*ba", "aba", False)],
)  # fmt: skip
def test_examples(pattern: str, name: str, expected: bool) -> None:
    assert matches(pattern, name) is expected


def test_many_stars_take_no_time() -> None:
    assert not matches("*a" * 100 + "b", "a" * 5000)


def test_the_prefix_ends_at_the_first_star() -> None:
    assert [literal_prefix(each) for each in ("ab*c*", "*", "abc")] == ["ab", "", "abc"]
