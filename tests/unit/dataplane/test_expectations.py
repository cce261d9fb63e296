from hypothesis import given
from hypothesis import strategies as st

from dataplane.domain.expectations import UNSEEN_TOKENS, OutputExpectations


def test_a_model_that_was_hardly_seen_is_expected_to_write_a_page() -> None:
    expectations = OutputExpectations()
    for _ in range(19):
        expectations.note("m", 5)
    assert expectations.output_tokens("m") == UNSEEN_TOKENS
    assert expectations.output_tokens("another") == UNSEEN_TOKENS


@given(st.lists(st.integers(1, 100_000), min_size=20, max_size=200))
def test_what_is_expected_covers_95_of_100_answers_and_is_at_most_a_fifth_too_much(
    answers: list[int],
) -> None:
    expectations = OutputExpectations()
    for tokens in answers:
        expectations.note("m", tokens)

    expected = expectations.output_tokens("m")

    assert sum(tokens <= expected for tokens in answers) >= 0.95 * len(answers)
    percentile = sorted(answers)[-(-95 * len(answers) // 100) - 1]
    assert expected <= percentile * 1.2 + 1


def test_old_answers_fade() -> None:
    expectations = OutputExpectations()
    for _ in range(2_000):
        expectations.note("m", 10_000)
    for _ in range(20_000):
        expectations.note("m", 10)
    assert expectations.output_tokens("m") < 20


def test_answers_of_nothing_say_nothing() -> None:
    expectations = OutputExpectations()
    for _ in range(100):
        expectations.note("m", 0)
    assert expectations.output_tokens("m") == UNSEEN_TOKENS


def test_names_that_callers_invent_do_not_fill_the_memory() -> None:
    expectations = OutputExpectations()
    for _ in range(20):
        expectations.note("old", 5)
    for index in range(1_000):
        expectations.note(f"invented-{index}", 5)
    assert expectations.output_tokens("old") == UNSEEN_TOKENS
