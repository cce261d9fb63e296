"""Faults of marks of revocations."""

from tests.limits import boundaries_marks as marks
from tests.limits.mutant import Mutant

MUTANTS = (
    Mutant(
        "a node that knows of a revocation is overruled by it",
        "local is_overruled = revision > caller[2]",
        "local is_overruled = revision >= caller[2]",
        marks.a_caller_who_was_revoked_later_than_its_node_knows_is_refused,
    ),
    Mutant(
        "only credentials are looked at",
        "for place = 1, #caller - 2 do",
        "for place = 1, 1 do",
        marks.a_caller_who_was_revoked_later_than_its_node_knows_is_refused,
    ),
    Mutant(
        "a credential that a restored database brings back",
        "is_overruled = place == CREDENTIAL_PLACE or is_before(caller[1], epoch)",
        "is_overruled = is_before(caller[1], epoch)",
        marks.a_mark_overrules_what_the_rule_says_that_it_overrules,
    ),
    Mutant(
        "a user that a restored database cannot bring back",
        "is_overruled = place == CREDENTIAL_PLACE or is_before(caller[1], epoch)",
        "is_overruled = true",
        marks.a_mark_overrules_what_the_rule_says_that_it_overrules,
    ),
    Mutant(
        "a mark that an earlier revocation lowers",
        "(earlier_epoch == epoch and earlier < revision)",
        "earlier_epoch == epoch",
        marks.a_mark_is_never_lowered,
    ),
    Mutant(
        "a mark that an earlier database lowers",
        "or is_before(earlier_epoch, epoch)\n",
        "or earlier_epoch ~= epoch\n",
        marks.a_mark_is_never_lowered,
    ),
    Mutant(
        "a mark without an end",
        'call("SET", key, text, "PX", int(MARK_MS))',
        'call("SET", key, text)',
        marks.a_mark_is_kept_for_seven_days_from_when_it_was_raised,
    ),
    Mutant(
        "a revoked caller who is counted",
        "  if revoked then return revoked end\n\n  local plan",
        "  local plan",
        marks.whoever_is_refused_for_a_mark_changes_nothing,
    ),
    Mutant(
        "a revoked caller who was admitted before",
        "local revoked = is_marked and operations.revoked(op[11])\n",
        "local revoked = is_marked and operations.revoked(op[11])\n"
        "  if revoked then return revoked end\n",
        marks.a_request_that_was_admitted_or_given_back_before_is_told_so,
    ),
    Mutant(
        "an answer that ends without having been asked to",
        "if revoked and revoked[5] == 1 then return revoked end",
        "if revoked then return revoked end",
        marks.an_answer_goes_on_unless_the_revocation_ends_streams,
    ),
    Mutant(
        "one position for a whole batch",
        "local caller = callers[caller_number]",
        "local caller = callers[1]",
        marks.callers_of_one_batch_are_each_asked_for_themselves,
    ),
    Mutant(
        "a mark that its own batch does not see",
        "    is_marked = is_marked or again[1 + i]\n",
        "",
        marks.a_mark_counts_for_what_comes_later_in_its_batch,
    ),
)
