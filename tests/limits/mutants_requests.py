"""Faults of requests and windows."""

from tests.limits import boundaries_cancels as cancels
from tests.limits import boundaries_requests as requests
from tests.limits import boundaries_upkeep as upkeep
from tests.limits import boundaries_windows as windows
from tests.limits.mutant import Mutant

WINDOWS = (
    Mutant(
        "window one slot short",
        "if slot >= current - SLOTS and",
        "if slot > current - SLOTS and",
        windows.a_window_filled_in_the_last_ms_of_a_slot_stays_full_for_its_whole_length,
    ),
    Mutant(
        "no monotonic clock",
        'local now = max(server_now, tonumber(known[1] or "0"))',
        "local now = server_now",
        windows.a_clock_that_steps_back_opens_no_new_window_and_no_old_day,
    ),
    Mutant(
        "period chosen by the caller's clock",
        "      if now >= ends then\n        key, ends =",
        "      if false then\n        key, ends =",
        windows.the_period_is_chosen_by_the_clock_of_redis_not_of_the_caller,
    ),
    Mutant(
        "a settle into an expired slot",
        "if difference == 0 or now >= ends_ms then return end",
        "slot = floor(now / 5000)",
        windows.a_settle_of_an_expired_slot_leaves_the_current_ones_alone,
    ),
    Mutant(
        "a rolling window that is back one slot early",
        "return (newest + SLOTS + 1) * slot_ms",
        "return (newest + SLOTS) * slot_ms",
        windows.a_balance_tells_when_all_of_it_is_back,
    ),
    Mutant(
        "a settled slot that keeps a window from being whole",
        "if tonumber(fields[i + 1]) > 0 and slot",
        "if slot",
        windows.a_balance_tells_when_all_of_it_is_back,
    ),
    Mutant(
        "the end of yesterday after midnight",
        "nexts + 2 ^ (i - 1), plan[at + 6]\n      end\n      if resets_at",
        "nexts + 2 ^ (i - 1), plan[at + 5]\n      end\n      if resets_at",
        windows.a_balance_tells_when_all_of_it_is_back,
    ),
    Mutant(
        "slots of a time that was taken back still counted",
        "if slot >= current - SLOTS and slot <= current then",
        "if slot >= current - SLOTS then",
        upkeep.a_clock_that_went_far_ahead_is_put_back_only_on_purpose,
    ),
)

REQUESTS = (
    Mutant(
        "at the limit one more passes",
        "if amount > remaining or capacity == 0 then",
        "if amount > remaining + 1 or capacity == 0 then",
        requests.a_layer_admits_exactly_its_capacity,
    ),
    Mutant(
        "at the limit one too few passes",
        "if amount > remaining or capacity == 0 then",
        "if amount >= remaining or capacity == 0 then",
        requests.a_layer_admits_exactly_its_capacity,
    ),
    Mutant(
        "held not released",
        "move_spend(key, charged, -amount,",
        "move_spend(key, charged, 0,",
        requests.a_settle_frees_what_was_held_and_the_reservation,
    ),
    Mutant(
        "reservation not deleted at settle",
        '  call("DEL", key)\n  -- One that was reaped',
        "  -- One that was reaped",
        requests.a_settle_frees_what_was_held_and_the_reservation,
    ),
    Mutant(
        "slot not freed at settle",
        'if was_held then call("ZREM", key, rid) end',
        "",
        requests.a_settle_frees_what_was_held_and_the_reservation,
    ),
    Mutant(
        "duplicate admit counted",
        "    if record[RECORD_EPOCH] == counter_epoch then\n      local pairs_of",
        "    if false then\n      local pairs_of",
        requests.an_admit_that_is_repeated_counts_once,
    ),
    Mutant(
        "late settle adds instead of correcting",
        "move_spend(key, charged - amount, 0,",
        "move_spend(key, charged, 0,",
        requests.a_late_settle_corrects_what_the_reaper_charged,
    ),
    *(
        Mutant(
            f"{name} skipped in pass 2",
            write,
            left,
            requests.every_layer_counts_and_the_first_short_one_binds,
        )
        for name, write, left in (
            ("rolling layer", '      call("HINCRBY", key, int(detail), int(amount))\n', ""),
            (
                "period layer",
                'then amount = tokens end\n        call("INCRBY", key, int(amount))\n',
                "then amount = tokens end\n",
            ),
            (
                "spend layer",
                'call("HINCRBY", key, "h", int(amount))\n      end\n      if is_fresh[i]',
                "end\n      if is_fresh[i]",
            ),
            (
                "parallel layer",
                'call("ZADD", key, lease_ends, rid)\n      -- Reading',
                "-- Reading",
            ),
        )
    ),
    Mutant(
        "the last layer skipped in pass 2",
        "i = 0\n  for at = 1, #plan, LAYER_FIELDS do",
        "i = 0\n  for at = 1, #plan - LAYER_FIELDS, LAYER_FIELDS do",
        requests.every_layer_counts_and_the_first_short_one_binds,
    ),
    Mutant(
        "a release without a tombstone",
        '  call("SET", key, TOMBSTONE, "PX", int(TOMBSTONE_MS))\n',
        '  call("DEL", key)\n',
        requests.a_release_that_overtakes_its_admit_wins,
    ),
    Mutant(
        "a denied request counted",
        "  if binding > 0 then\n",
        '  if binding > 0 then\n    call("ZADD", KEYS[LEASES_KEY], int(now), rid)\n',
        requests.a_denied_request_changes_no_counter_of_any_layer,
    ),
    Mutant(
        "a slot that is kept one millisecond too long",
        '"(" .. int(now - SLOT_GRACE_MS), "+inf")',
        'int(now - SLOT_GRACE_MS), "+inf")',
        requests.a_slot_that_nobody_reaps_is_not_taken_for_ever,
    ),
    Mutant(
        "a slot that is given away when its lease runs out",
        '"(" .. int(now - SLOT_GRACE_MS), "+inf")',
        '"(" .. int(now), "+inf")',
        requests.an_outage_that_outlasts_leases_gives_no_slot_away,
    ),
    Mutant(
        "a slot that is lost when its lease is renewed late",
        'call("ZREMRANGEBYSCORE", key, "-inf", int(now - SLOT_GRACE_MS))',
        'call("ZREMRANGEBYSCORE", key, "-inf", int(now))',
        requests.an_outage_that_outlasts_leases_gives_no_slot_away,
    ),
    Mutant(
        "a lost slot that is taken back",
        'call("ZADD", key, "XX", expiry, rid)\n    keep_slots(key)',
        'call("ZADD", key, expiry, rid)\n    keep_slots(key)',
        requests.a_slot_that_nobody_reaps_is_not_taken_for_ever,
    ),
    Mutant(
        "slots that are kept for no longer than leases",
        'call("PEXPIRE", key, int(2 * (LEASE_MS + SLOT_GRACE_MS)))',
        'call("PEXPIRE", key, int(2 * LEASE_MS))',
        requests.an_outage_that_outlasts_leases_gives_no_slot_away,
    ),
    Mutant(
        "an admit after its caller has left",
        "if server_now > op[8] then return {EXPIRED} end",
        "",
        requests.an_admit_whose_caller_has_left_does_nothing,
    ),
    Mutant(
        "an admit to counters of another epoch",
        "if counter_epoch ~= ARGV[EPOCH_ARGUMENT] then return revoked or {COLD} end\n  local reservation",
        "local reservation",
        requests.an_admit_whose_caller_has_left_does_nothing,
    ),
    Mutant(
        "numbers written by Lua's own conversion",
        'return string.format("%d", number)',
        "return tostring(number)",
        requests.the_largest_amounts_are_exact_to_the_unit,
        is_fault=True,
    ),
)

CANCELS = (
    Mutant(
        "another admission undone",
        "if not record or record[RECORD_STATE] ~= HELD or record[RECORD_ADMITTED] ~= admitted then",
        "if not record or record[RECORD_STATE] ~= HELD then",
        cancels.an_admission_that_is_undone_may_be_asked_for_again,
    ),
    Mutant(
        "a reaped admission undone",
        "if not record or record[RECORD_STATE] ~= HELD or record[RECORD_ADMITTED] ~= admitted then",
        "if not record or record[RECORD_ADMITTED] ~= admitted then",
        cancels.nothing_but_a_held_admission_is_undone,
    ),
    Mutant(
        "an undone admission that stays in the window",
        "      move_slot(key, slot, (slot + SLOTS + 1) * p1, -1)\n",
        "",
        cancels.an_admission_that_is_undone_leaves_nothing_behind,
    ),
    Mutant(
        "an admission undone in the present slot",
        "local slot = floor(admitted / p1)",
        "local slot = floor(now / p1)",
        cancels.an_admission_is_undone_in_the_slot_and_period_that_counted_it,
    ),
    Mutant(
        "a rate that gives away what nobody used",
        "elseif is_last or (mine - 1) * 1000 - p1 >= now * 1000 then",
        "elseif mine > now then",
        cancels.a_rate_that_an_undone_admission_made_busy_gives_no_time_away,
    ),
    Mutant(
        "a rate that takes nothing back",
        "elseif is_last or (mine - 1) * 1000 - p1 >= now * 1000 then",
        "elseif is_last then",
        cancels.a_rate_takes_back_an_admission_as_if_it_had_not_come,
    ),
)

MUTANTS = (*WINDOWS, *REQUESTS, *CANCELS)
