"""Data planes killed with -9 at every point of a request's way: no request is lost, doubled or forgotten.

The victims are processes, and so are the control plane, Redis and the node that maintains the counters.
Leases of requests end after two seconds here; nothing else of what is promised differs.
"""

import asyncio
import signal

import pytest
from tollkeeper.common.v1 import limits_pb2

from tests.crashes.node import LEASE_S
from tests.crashes.points import Point
from tests.crashes.stories import BUDGET_NANOUSD, Chronicle, Plot, Story, live_through

PLOTS = (
    Plot(Point.AFTER_ADMIT, is_sent=False),
    Plot(Point.AFTER_UPSTREAM_WRITE, model="mock-hang", is_stream=False),
    Plot(Point.MID_STREAM),
    Plot(Point.AFTER_TOP_UP, model="mock-tokens-2000-pace-1", max_tokens=None, is_soft=True),
    Plot(Point.AFTER_LAST_BYTE, finally_="settled"),
    Plot(Point.AFTER_SETTLE, is_held=False, later=None, finally_="settled"),
    Plot(Point.BEFORE_ACKNOWLEDGEMENT, is_held=False, later="settled", finally_="settled"),
)
# What a busy machine takes to let somebody in whose slot is free.
SLACK_S = 2.0
# Their callers have read an answer to its end.
ANSWERED = {Point.AFTER_LAST_BYTE, Point.AFTER_SETTLE, Point.BEFORE_ACKNOWLEDGEMENT}
BEGUN = {Point.MID_STREAM, Point.AFTER_TOP_UP}
_USER = limits_pb2.SUBJECT_KIND_USER


@pytest.fixture(scope="module")
def chronicle(tmp_path_factory: pytest.TempPathFactory) -> Chronicle:
    """All crashes and what followed, side by side on one stack."""
    return asyncio.run(live_through(PLOTS, tmp_path_factory.mktemp("crashes")))


@pytest.fixture(params=[plot.point for plot in PLOTS])
def story(request: pytest.FixtureRequest, chronicle: Chronicle) -> Story:
    """Each of the crashes."""
    return chronicle.stories[request.param]


def told(*points: Point) -> pytest.MarkDecorator:
    """Only some of the crashes."""
    return pytest.mark.parametrize("story", points, indirect=True)


def test_a_process_dies_where_its_story_says(story: Story) -> None:
    plot = story.plot

    assert story.exit_code == -signal.SIGKILL
    assert story.upstream_calls == plot.is_sent
    # Its last byte ends what the caller waits for, though not the connection.
    assert ("data: [DONE]" in story.answer.body) == (plot.point in ANSWERED)
    assert bool(story.answer.text) == (plot.point in ANSWERED | BEGUN)
    assert story.at_death.in_flight == plot.is_held
    assert (story.at_death.held_nanousd > 0) == plot.is_held


def test_one_lease_later_a_request_of_a_dead_process_is_one_row_of_the_ledger(
    story: Story,
) -> None:
    rows = story.later.of_node(story.victim.node_id)

    # Of one that was settled, and that nobody was told of, only the spool of its node knows.
    assert [row.state for row in rows] == ([story.plot.later] if story.plot.later else [])
    # Others were served before the crash and after it.
    assert len(story.later.rows) == 2 + len(rows)


@told(*(plot.point for plot in PLOTS if plot.later == "abandoned"))
def test_of_whose_end_nobody_knows_is_charged_what_it_reserved(story: Story) -> None:
    [row] = story.later.of_node(story.victim.node_id)

    assert row.charged_nanousd == row.reserved_nanousd > 0
    held = story.at_death.held_nanousd
    # What a stream topped up is held until its process dies; what it began with is charged.
    assert held > row.reserved_nanousd if story.plot.is_soft else held == row.reserved_nanousd


@told(*(plot.point for plot in PLOTS if plot.later))
def test_one_lease_later_the_counters_are_what_the_ledger_says(story: Story) -> None:
    assert story.later.counters == story.later.ledger
    assert {name.unit.value for name in story.later.counters} == {"requests", "tokens", "spend"}
    assert story.later.held_nanousd == 0


def test_a_slot_whose_process_died_is_free_again_within_one_lease(story: Story) -> None:
    assert story.freed_after_s < LEASE_S + SLACK_S
    assert story.later.in_flight == 0
    # Until then it is taken.
    assert bool(story.refusals) == story.plot.is_held
    assert set(story.refusals) <= {"too_many_parallel_requests"}


@told(Point.AFTER_SETTLE)
def test_what_only_a_dead_process_can_report_stays_counted_until_it_is_back(
    story: Story, chronicle: Chronicle
) -> None:
    [row] = story.restarted.of_node(story.victim.node_id)
    ledger = sum(each.charged_nanousd for each in story.later.rows)

    # The maintainer compares twice a second, and lowers nothing while a node is missing.
    assert story.later.settled_nanousd == ledger + row.charged_nanousd
    assert story.later.settled_nanousd == story.restarted.settled_nanousd
    # An administrator is shown what is missing, and of whom; nobody else's counters differ.
    owed = {
        each.difference.counter.subject_id
        for each in chronicle.verified_later.differences
        if each.difference.counter.subject_kind == _USER
    }
    assert owed == {story.customer.user_id}


def test_a_node_that_is_back_tells_what_it_knew_and_every_request_is_still_one_row(
    story: Story,
) -> None:
    rows = story.restarted.of_node(story.victim.node_id)

    assert [row.state for row in rows] == [story.plot.finally_]
    assert len(story.restarted.rows) == 3
    if earlier := story.later.of_node(story.victim.node_id):
        assert earlier[0].request_id == rows[0].request_id
    if story.plot.finally_ == story.plot.later:
        assert earlier == rows
    assert story.restarted.counters == story.restarted.ledger
    assert story.restarted.in_flight == 0


@told(Point.AFTER_LAST_BYTE)
def test_true_figures_that_come_late_take_the_place_of_the_reservation(story: Story) -> None:
    [abandoned] = story.later.of_node(story.victim.node_id)
    [settled] = story.restarted.of_node(story.victim.node_id)

    assert settled.tokens < abandoned.tokens
    assert settled.charged_nanousd < abandoned.charged_nanousd
    assert (
        story.later.settled_nanousd - story.restarted.settled_nanousd
        == abandoned.charged_nanousd - settled.charged_nanousd
    )


def test_with_every_node_back_an_administrator_finds_no_counter_that_differs(
    chronicle: Chronicle,
) -> None:
    for found in (chronicle.verified_restarted, chronicle.verified_filled):
        assert [(each.subject, str(each.difference)) for each in found.differences] == []
        assert found.differing == 0
        # Three of each user, at least.
        assert found.compared > 3 * len(PLOTS)


def test_every_charge_is_right_at_once_and_none_has_to_be_corrected(chronicle: Chronicle) -> None:
    assert chronicle.corrections == []


def test_no_crash_brings_a_budget_beyond_its_limit_and_what_is_left_of_it_can_be_used(
    story: Story,
) -> None:
    assert story.last_refusal == "insufficient_quota"
    charged = sum(row.charged_nanousd for row in story.filled.rows)
    # Half of it is used at least: less is not short of what the next request reserves.
    assert BUDGET_NANOUSD / 2 < charged <= story.most_nanousd <= BUDGET_NANOUSD
    assert len(story.filled.rows) == story.served + 1
    assert story.filled.counters == story.filled.ledger
