"""Faults of upkeep, and of counters that were lost."""

from tests.limits import boundaries_epochs as epochs
from tests.limits import boundaries_requests as requests
from tests.limits import boundaries_upkeep as upkeep
from tests.limits.mutant import Mutant

UPKEEP = (
    Mutant(
        "a fence that is ignored",
        'return fence ~= NO_FENCE and tonumber(call("GET", KEYS[fence_key]) or "0") ~= fence',
        "return false",
        upkeep.a_node_that_lost_the_maintenance_lease_changes_nothing,
    ),
    Mutant(
        "a fence that does not rise",
        'fence = max(tonumber(call("GET", fence_key) or "0") + 1, server_now)',
        "fence = server_now",
        upkeep.one_node_at_a_time_maintains,
    ),
    Mutant(
        "a fence that begins anew after a loss",
        'fence = max(tonumber(call("GET", fence_key) or "0") + 1, server_now)',
        'fence = tonumber(call("GET", fence_key) or "0") + 1',
        upkeep.a_number_of_the_maintenance_lease_is_not_given_out_again_after_a_loss,
    ),
    Mutant(
        "a maintenance lease for two",
        "if holder[1] and holder[1] ~= node then return {TAKEN, holder[1]} end",
        "",
        upkeep.one_node_at_a_time_maintains,
    ),
    Mutant(
        "a living request reaped",
        "if fence ~= NO_FENCE and lease and tonumber(lease) > now then return {MOVED} end",
        "",
        upkeep.a_lease_runs_out_to_the_millisecond,
    ),
    Mutant(
        "a reaped request that is not listed",
        '  call("ZADD", KEYS[REAPED_KEY], int(now), rid)\n',
        "",
        upkeep.a_reaped_request_stays_listed_until_its_record_is_in_the_ledger,
    ),
    Mutant(
        "a reaped request that is reaped again",
        "if record[RECORD_STATE] ~= HELD then return {DUPLICATE} end",
        "",
        requests.a_late_settle_corrects_what_the_reaper_charged,
    ),
    Mutant(
        "a correction without comparing money",
        'if tonumber(balance[1] or "0") ~= before or tonumber(balance[2] or "0") ~= op[6] then',
        "if false then",
        upkeep.a_correction_applies_only_to_what_was_read,
    ),
    Mutant(
        "a correction that compares only what was settled",
        'if tonumber(balance[1] or "0") ~= before or tonumber(balance[2] or "0") ~= op[6] then',
        'if tonumber(balance[1] or "0") ~= before then',
        upkeep.a_correction_applies_only_to_what_was_read,
    ),
    Mutant(
        "a correction without comparing counts",
        'if tonumber(count or "0") ~= before then return {MOVED} end',
        "",
        upkeep.a_correction_applies_only_to_what_was_read,
    ),
    Mutant(
        "a correction that makes a counter for ever",
        '    call("PEXPIRE", key, int(ends_ms - now + PERIOD_GRACE_MS))\n  end\nend',
        "  end\nend",
        upkeep.a_correction_makes_a_counter_that_ends_with_its_period,
    ),
    Mutant(
        "a raise that lowers a count",
        'if tonumber(count or "0") >= wanted then return {MOVED} end',
        "",
        upkeep.a_counter_is_raised_whatever_it_is_by_then_and_never_lowered,
    ),
    Mutant(
        "a raise that lowers money",
        'if tonumber(balance[1] or "0") + made_up >= wanted then return {MOVED} end',
        "",
        upkeep.a_counter_is_raised_whatever_it_is_by_then_and_never_lowered,
    ),
    Mutant(
        "a raise by what is held",
        "local made_up = op[5] == 1 and max(held, 0) or 0",
        "local made_up = 0",
        upkeep.a_budget_is_not_raised_by_what_it_holds,
    ),
    Mutant(
        "a raise that what is held always prevents",
        "local made_up = op[5] == 1 and max(held, 0) or 0",
        "local made_up = held",
        upkeep.a_budget_is_not_raised_by_what_it_holds,
    ),
    Mutant(
        "a raise that forgets what is held",
        "set_budget(key, balance, wanted, held, ends_ms, op[7], crossings)",
        "set_budget(key, balance, wanted, 0, ends_ms, op[7], crossings)",
        upkeep.a_budget_is_not_raised_by_what_it_holds,
    ),
    Mutant(
        "a budget made for ever",
        "if not (balance[1] or balance[2]) then keep_until(key, ends_ms) end",
        "",
        upkeep.a_raise_makes_a_counter_that_ends_with_its_period,
    ),
    Mutant(
        "a reservation that ends by itself",
        'call("SET", reservation, cmsgpack.pack(record))\n  call("ZADD", KEYS[LEASES_KEY], lease_ends, rid)\n  if earlier',
        'call("SET", reservation, cmsgpack.pack(record), "PX", "86400000")\n  call("ZADD", KEYS[LEASES_KEY], lease_ends, rid)\n  if earlier',
        upkeep.what_a_request_in_flight_holds_is_known_until_somebody_ends_it,
    ),
    Mutant(
        "a restored reservation that ends by itself",
        'call("SET", reservation, cmsgpack.pack(record))\n  call("ZADD", KEYS[LEASES_KEY], lease_ends, rid)\n  call',
        'call("SET", reservation, cmsgpack.pack(record), "PX", "86400000")\n  call("ZADD", KEYS[LEASES_KEY], lease_ends, rid)\n  call',
        upkeep.what_a_request_in_flight_holds_is_known_until_somebody_ends_it,
    ),
    Mutant(
        "tokens that a late settle leaves",
        "move_slot(key, counters[i + 3], ends, (tokens or amount) - amount)",
        "if was_held then move_slot(key, counters[i + 3], ends, (tokens or amount) - amount) end",
        upkeep.a_late_settle_moves_tokens_as_it_moves_money,
    ),
)

EPOCHS = (
    Mutant(
        "a request of another counter epoch that moves counters",
        "local is_counted = record[RECORD_EPOCH] == counter_epoch",
        "local is_counted = true",
        epochs.a_request_of_another_counter_epoch_moves_no_counter,
    ),
    Mutant(
        "a heartbeat of another counter epoch",
        "if not record or record[RECORD_EPOCH] ~= counter_epoch then return {GONE} end",
        "",
        epochs.a_request_of_another_counter_epoch_moves_no_counter,
    ),
    Mutant(
        "an admission of another counter epoch that goes for one of this",
        "    if record[RECORD_EPOCH] == counter_epoch then\n      local pairs_of",
        "    if true then\n      local pairs_of",
        epochs.a_request_of_another_counter_epoch_that_asks_again_is_counted,
    ),
    Mutant(
        "a restored request counted twice",
        "if earlier and cmsgpack.unpack(earlier)[RECORD_EPOCH] == epoch then return {DUPLICATE} end",
        "",
        epochs.a_restored_request_counts_once_and_is_settled_as_ever,
    ),
    Mutant(
        "a request of another counter epoch that is not restored",
        "if earlier and cmsgpack.unpack(earlier)[RECORD_EPOCH] == epoch then return {DUPLICATE} end",
        "if earlier then return {DUPLICATE} end",
        epochs.a_request_that_is_still_known_is_restored_in_its_place,
    ),
    Mutant(
        "a restored request that takes from the windows of others",
        "elseif code == ROLLING_TOKENS or now >=",
        "elseif code == ROLLING_TOKENS then\n    elseif now >=",
        epochs.a_restored_request_takes_nothing_from_the_windows_of_others,
    ),
    Mutant(
        "a restored request without its money",
        '        call("HINCRBY", key, "h", int(amount))\n      else\n',
        "      else\n",
        epochs.a_restored_request_counts_once_and_is_settled_as_ever,
    ),
    Mutant(
        "a request that was given back restored",
        'local earlier = call("GET", reservation)\n  if earlier == TOMBSTONE then return {RELEASED} end\n  if earlier and',
        'local earlier = call("GET", reservation)\n  if earlier == TOMBSTONE then earlier = nil end\n  if earlier and',
        epochs.a_request_that_was_given_back_is_not_restored,
    ),
)

MUTANTS = (*UPKEEP, *EPOCHS)
