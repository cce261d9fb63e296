"""Faults put into the script on purpose; the directed cases must catch each of them."""

from dataclasses import dataclass

import pytest

from dataplane.limits.script import Script
from tests.limits import boundaries
from tests.limits.boundaries import CASES, Case
from tests.limits.driver import Driver, script_under_test


@dataclass(frozen=True, slots=True)
class Mutant:
    """A fault: what the script says, what the mutant says instead, and who must notice."""

    name: str
    original: str
    fault: str
    caught_by: Case


MUTANTS = (
    Mutant(
        "window one slot short",
        "if slot >= current - SLOTS then",
        "if slot > current - SLOTS then",
        boundaries.a_window_filled_in_the_last_ms_of_a_slot_stays_full_for_its_whole_length,
    ),
    Mutant(
        "at the limit one more passes",
        "if amount > remaining or capacity == 0 then",
        "if amount > remaining + 1 or capacity == 0 then",
        boundaries.a_layer_admits_exactly_its_capacity,
    ),
    Mutant(
        "at the limit one too few passes",
        "if amount > remaining or capacity == 0 then",
        "if amount >= remaining or capacity == 0 then",
        boundaries.a_layer_admits_exactly_its_capacity,
    ),
    Mutant(
        "held not released",
        "move_spend(key, charged, -amount)",
        "move_spend(key, charged, 0)",
        boundaries.a_settle_frees_what_was_held_and_the_reservation,
    ),
    Mutant(
        "reservation not deleted at settle",
        '  call("DEL", key)\n',
        "",
        boundaries.a_settle_frees_what_was_held_and_the_reservation,
    ),
    Mutant(
        "slot not freed at settle",
        '      call("ZREM", key, rid)\n',
        "",
        boundaries.a_settle_frees_what_was_held_and_the_reservation,
    ),
    Mutant(
        "duplicate admit counted",
        "  if earlier then\n",
        "  if false then\n",
        boundaries.an_admit_that_is_repeated_counts_once,
    ),
    Mutant(
        "late settle adds instead of correcting",
        "move_spend(key, charged - amount, 0)",
        "move_spend(key, charged, 0)",
        boundaries.a_late_settle_corrects_what_the_reaper_charged,
    ),
    Mutant(
        "no monotonic clock",
        'math.max(server_now, tonumber(call("GET", KEYS[CLOCK_KEY]) or "0"))',
        "server_now",
        boundaries.a_clock_that_steps_back_opens_no_new_window_and_no_old_day,
    ),
    *(
        Mutant(
            f"{name} skipped in pass 2",
            write,
            "",
            boundaries.every_layer_counts_and_the_first_short_one_binds,
        )
        for name, write in (
            ("rolling layer", '      call("HINCRBY", key, int(slot), int(amount))\n'),
            ("period layer", '        call("INCRBY", key, int(amount))\n'),
            ("spend layer", '        call("HINCRBY", key, "h", int(amount))\n'),
            ("parallel layer", '      call("ZADD", key, int(now + LEASE_MS), rid)\n'),
        )
    ),
    Mutant(
        "the last layer skipped in pass 2",
        "local counters = {}\n  for i = 1, #plan do",
        "local counters = {}\n  for i = 1, #plan - 1 do",
        boundaries.every_layer_counts_and_the_first_short_one_binds,
    ),
    Mutant(
        "period chosen by the caller's clock",
        "if now >= ends then",
        "if false then",
        boundaries.the_period_is_chosen_by_the_clock_of_redis_not_of_the_caller,
    ),
    Mutant(
        "a settle into an expired slot",
        "if difference == 0 or now >= ends_ms then return end",
        "slot = floor(now / 5000)",
        boundaries.a_settle_of_an_expired_slot_leaves_the_current_ones_alone,
    ),
    Mutant(
        "a release without a tombstone",
        '  call("SET", key, TOMBSTONE, "PX", int(TOMBSTONE_MS))\n',
        '  call("DEL", key)\n',
        boundaries.a_release_that_overtakes_its_admit_wins,
    ),
    Mutant(
        "a denied request counted",
        "  if binding > 0 then\n",
        '  if binding > 0 then\n    call("ZADD", KEYS[LEASES_KEY], int(now), rid)\n',
        boundaries.a_denied_request_changes_no_counter_of_any_layer,
    ),
    Mutant(
        "a rolling window that is back one slot early",
        "return (newest + SLOTS + 1) * slot_ms",
        "return (newest + SLOTS) * slot_ms",
        boundaries.a_balance_tells_when_all_of_it_is_back,
    ),
    Mutant(
        "a settled slot that keeps a window from being whole",
        "if tonumber(fields[i + 1]) > 0 then newest",
        "if true then newest",
        boundaries.a_balance_tells_when_all_of_it_is_back,
    ),
    Mutant(
        "the end of yesterday after midnight",
        "resets_at = KEYS[base + layer[2] + 1], nexts + 2 ^ (i - 1), layer[7]",
        "resets_at = KEYS[base + layer[2] + 1], nexts + 2 ^ (i - 1), layer[6]",
        boundaries.a_balance_tells_when_all_of_it_is_back,
    ),
    Mutant(
        "numbers written by Lua's own conversion",
        'return string.format("%d", number)',
        "return tostring(number)",
        boundaries.the_largest_amounts_are_exact_to_the_unit,
    ),
)


def mutated(mutant: Mutant) -> Script:
    text = script_under_test().text
    assert text.count(mutant.original) == 1, f"{mutant.name}: the script no longer says so"
    return Script.of(text.replace(mutant.original, mutant.fault))


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_fault_in_the_script_does_not_go_unnoticed(mutant: Mutant, redis_url: str) -> None:
    assert mutant.caught_by in CASES

    with Driver(redis_url, mutated(mutant)) as driver, pytest.raises(AssertionError):
        mutant.caught_by(driver)
