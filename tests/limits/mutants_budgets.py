"""Faults of rates and budgets."""

from tests.limits import boundaries_budgets as budgets
from tests.limits import boundaries_rates as rates
from tests.limits.mutant import Mutant

RATES = (
    Mutant(
        "a burst of one more",
        "floor((most - ahead) / p1)",
        "floor((most - ahead) / p1) + 1",
        rates.a_rate_passes_its_burst_and_then_one_each_interval,
    ),
    Mutant(
        "a burst of one less",
        "floor((most - ahead) / p1)",
        "floor((most - ahead) / p1) - 1",
        rates.a_rate_passes_its_burst_and_then_one_each_interval,
    ),
    Mutant(
        "an interval that is shorter than it",
        "local ahead = ends + plan[at + 4]\n",
        "local ahead = ends + plan[at + 4] - 1000\n",
        rates.a_rate_passes_its_burst_and_then_one_each_interval,
    ),
    Mutant(
        "a rate in whole milliseconds",
        "local ahead = ends + plan[at + 4]\n",
        "local ahead = ceil((ends + plan[at + 4]) / 1000) * 1000\n",
        rates.a_rate_counts_in_microseconds,
    ),
    Mutant(
        "a rate that counts from its last request alone",
        "local ahead = ends + plan[at + 4]\n",
        "local ahead = plan[at + 4]\n",
        rates.no_stretch_of_time_sees_more_than_the_burst_and_its_share,
    ),
    Mutant(
        "a pause that is saved up",
        'local ahead = max(tonumber(call("GET", key) or "0") - now * 1000, 0)',
        'local ahead = max(tonumber(call("GET", key) or "0") - now * 1000, -interval_us / 2)',
        rates.a_rate_passes_its_burst_and_then_one_each_interval,
    ),
    Mutant(
        "a rate that forgets while the clock stands",
        'local lifetime = ceil(ahead / 1000) + now - server_now\n        call("SET", key, int(now * 1000 + ahead), "PX", int(lifetime))\n        pairs_of',
        'local lifetime = ceil(ahead / 1000) + server_now - now\n        call("SET", key, int(now * 1000 + ahead), "PX", int(lifetime))\n        pairs_of',
        rates.a_rate_is_kept_as_long_as_it_says_something,
    ),
)

BUDGETS = (
    Mutant(
        "a soft budget that reserves the upper bound",
        "        amount = code == SPEND and hard or soft\n        local balance",
        "        amount = hard\n        local balance",
        budgets.a_hard_budget_holds_the_upper_bound_and_a_soft_one_what_is_expected,
    ),
    Mutant(
        "a soft budget that holds the upper bound",
        "        amount = code == SPEND and hard or soft\n        detail",
        "        amount = hard\n        detail",
        budgets.a_hard_budget_holds_the_upper_bound_and_a_soft_one_what_is_expected,
    ),
    Mutant(
        "a hard budget that reserves what is expected",
        "        amount = code == SPEND and hard or soft\n        detail",
        "        amount = soft\n        detail",
        budgets.a_hard_budget_holds_the_upper_bound_and_a_soft_one_what_is_expected,
    ),
    Mutant(
        "a top-up counted twice",
        "    counters[i + 2] = wanted\n",
        "",
        budgets.a_top_up_goes_exactly_to_the_budget,
    ),
    Mutant(
        "a top-up that adds all of it",
        'call("HINCRBY", counters[i + 1], "h", int(wanted - counters[i + 2]))',
        'call("HINCRBY", counters[i + 1], "h", int(wanted))',
        budgets.a_top_up_goes_exactly_to_the_budget,
    ),
    Mutant(
        "a top-up beyond the budget",
        "if capacity > 0 and used + wanted - counters[i + 2] > capacity",
        "if capacity > 0 and used + wanted - counters[i + 2] > capacity + 1",
        budgets.a_top_up_goes_exactly_to_the_budget,
    ),
    Mutant(
        "a top-up that does not quite reach the budget",
        "if capacity > 0 and used + wanted - counters[i + 2] > capacity",
        "if capacity > 0 and used + wanted - counters[i + 2] >= capacity",
        budgets.a_top_up_goes_exactly_to_the_budget,
    ),
    Mutant(
        "a top-up of some budgets",
        "      if balance[2] then raised[#raised + 1] = i end\n",
        "      if balance[2] then\n"
        "        raised[#raised + 1] = i\n"
        '        call("HINCRBY", counters[i + 1], "h", int(wanted - counters[i + 2]))\n'
        "      end\n",
        budgets.a_top_up_raises_all_soft_budgets_or_none,
    ),
    Mutant(
        "a top-up of hard budgets",
        "if counters[i] == SOFT_SPEND and counters[i + 2] < wanted then",
        "if (counters[i] == SOFT_SPEND or counters[i] == SPEND) and counters[i + 2] < wanted then",
        budgets.a_top_up_goes_exactly_to_the_budget,
    ),
    Mutant(
        "a top-up of what was reaped",
        "if not record or record[RECORD_STATE] ~= HELD or record[RECORD_EPOCH]",
        "if not record or record[RECORD_EPOCH]",
        budgets.nothing_that_is_over_can_be_topped_up,
    ),
    Mutant(
        "a crossing of 80 told twice",
        '    call("HSET", key, "a", "80")\n',
        "",
        budgets.eighty_and_a_hundred_percent_are_told_once_each_and_exactly_there,
    ),
    Mutant(
        "a crossing of 100 told twice",
        '    call("HSET", key, "a", "100")\n',
        "",
        budgets.eighty_and_a_hundred_percent_are_told_once_each_and_exactly_there,
    ),
    Mutant(
        "80 percent told one too late",
        "used < capacity - floor(capacity / 5)",
        "used <= capacity - floor(capacity / 5)",
        budgets.eighty_and_a_hundred_percent_are_told_once_each_and_exactly_there,
    ),
    Mutant(
        "100 percent told one too early",
        "if told < 100 and used >= capacity then",
        "if told < 100 and used >= capacity - 1 then",
        budgets.eighty_and_a_hundred_percent_are_told_once_each_and_exactly_there,
    ),
    Mutant(
        "what is held does not count in a crossing",
        "local used = settled + held\n",
        "local used = settled\n",
        budgets.a_crossing_counts_what_is_held_and_is_told_by_the_settle_that_sees_it,
    ),
    Mutant(
        "a late settle that forgets what was charged",
        "      counters[i + 2] = charged\n",
        "",
        budgets.a_reaped_request_is_charged_what_each_budget_held_or_what_its_record_says,
    ),
)

MUTANTS = (*RATES, *BUDGETS)
