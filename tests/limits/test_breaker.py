"""The breaker as a transition table."""

from dataplane.domain.breaker import REDIS_RULE, Breaker, after_failure, after_success


def failed_at(*instants_ms: int) -> Breaker:
    breaker = Breaker(rule=REDIS_RULE)
    for instant_ms in instants_ms:
        breaker = after_failure(breaker, instant_ms)
    return breaker


def test_five_failures_within_a_second_open_it() -> None:
    assert not failed_at(0, 100, 200, 300).is_open
    assert failed_at(0, 100, 200, 300, 999).is_open


def test_failures_that_are_a_second_old_do_not_count() -> None:
    assert not failed_at(0, 100, 200, 300, 1_000).is_open
    assert not failed_at(0, 600, 1_200, 1_800, 2_400, 3_000, 3_600).is_open


def test_it_asks_for_a_probe_half_a_second_after_it_opened_or_after_each_probe() -> None:
    opened = failed_at(0, 1, 2, 3, 4)
    assert opened.probe_at_ms == 504
    assert after_success(opened, 510).probe_at_ms == 1_010
    assert after_failure(opened, 520).probe_at_ms == 1_020


def test_three_good_probes_in_a_row_close_it() -> None:
    breaker = failed_at(0, 1, 2, 3, 4)
    breaker = after_success(after_success(breaker, 504), 1_004)
    assert breaker.is_open
    broken_row = after_failure(breaker, 1_504)
    assert after_success(after_success(broken_row, 2_004), 2_504).is_open

    closed = after_success(breaker, 1_504)

    assert closed == Breaker(rule=REDIS_RULE)
    assert not closed.is_open


def test_a_success_while_closed_changes_nothing() -> None:
    breaker = failed_at(0, 100)
    assert after_success(breaker, 200) is breaker
