from datetime import UTC, datetime, timedelta

import pytest
from tollkeeper.common.v1 import limits_pb2

from controlplane.domain.errors import InvalidError
from controlplane.domain.limits import COUNTED, Limit, LimitUnit, LimitWindow
from controlplane.domain.subject_limits import (
    CounterReset,
    SubjectLimitSet,
    TemporaryLimit,
    check_resettable,
    check_temporary,
)
from controlplane.store.subject_limits import (
    resets_from_json,
    resets_to_json,
    temporary_from_json,
    temporary_to_json,
)

REQUESTS, TOKENS, SPEND, PARALLEL = LimitUnit
NONE, MINUTE, DAY, MONTH, TOTAL, RATE = LimitWindow
NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
LATER = NOW + timedelta(hours=1)


def limit(unit: LimitUnit, window: LimitWindow, capacity: int = 1) -> Limit:
    return Limit(unit=unit, window=window, capacity=capacity)


def temporary(each: Limit, until: datetime = LATER) -> TemporaryLimit:
    return TemporaryLimit(limit=each, until=until)


def reset(unit: LimitUnit, window: LimitWindow, generation: int) -> CounterReset:
    return CounterReset(unit=unit, window=window, reset_generation=generation)


def test_a_temporary_limit_ends_at_its_instant_and_no_later() -> None:
    held = SubjectLimitSet(temporary=(temporary(limit(TOKENS, DAY), NOW),))

    assert held.at(NOW - timedelta(microseconds=1)) == held
    assert held.at(NOW) == SubjectLimitSet()


def test_a_temporary_limit_takes_the_place_of_one_that_counts_the_same() -> None:
    first = temporary(limit(TOKENS, DAY, 5))
    held = SubjectLimitSet(limits=(limit(TOKENS, DAY, 1),)).with_temporary(
        [first, temporary(limit(REQUESTS, DAY, 3))]
    )

    after = held.with_temporary([temporary(limit(TOKENS, DAY, 9), LATER + timedelta(hours=1))])

    assert [(each.limit.unit, each.limit.capacity) for each in after.temporary] == [
        (REQUESTS, 3),
        (TOKENS, 9),
    ]
    assert after.limits == held.limits


def test_every_limit_that_may_bind_is_known_for_checks() -> None:
    held = SubjectLimitSet(
        limits=(limit(TOKENS, DAY),), temporary=(temporary(limit(SPEND, MONTH)),)
    )

    assert held.all_limits == (limit(TOKENS, DAY), limit(SPEND, MONTH))


@pytest.mark.parametrize(
    ("identities", "temporary_only", "left", "left_temporary"),
    [
        ([], False, [], []),
        ([], True, [TOKENS, SPEND], []),
        ([(TOKENS, DAY)], False, [SPEND], [SPEND]),
        ([(TOKENS, DAY)], True, [TOKENS, SPEND], [SPEND]),
        ([(REQUESTS, DAY)], False, [TOKENS, SPEND], [TOKENS, SPEND]),
    ],
)
def test_limits_are_removed_with_what_takes_their_place_or_that_alone(
    identities: list[tuple[LimitUnit, LimitWindow]],
    temporary_only: bool,
    left: list[LimitUnit],
    left_temporary: list[LimitUnit],
) -> None:
    both = (limit(TOKENS, DAY), limit(SPEND, MONTH))
    held = SubjectLimitSet(limits=both, temporary=tuple(map(temporary, both)))

    after = held.without(identities, temporary_only=temporary_only)

    assert [each.unit for each in after.limits] == left
    assert [each.limit.unit for each in after.temporary] == left_temporary


def test_a_reset_raises_the_generation_of_what_is_named_and_nothing_else() -> None:
    held = SubjectLimitSet(resets=(reset(TOKENS, DAY, 2),))

    after = held.with_reset([(TOKENS, DAY), (REQUESTS, RATE), (TOKENS, DAY)])

    assert after.resets == (reset(REQUESTS, RATE, 1), reset(TOKENS, DAY, 3))
    assert after.generation_of((TOKENS, DAY)) == 3
    assert after.generation_of((TOKENS, MONTH)) == 0


def test_a_reset_of_all_is_one_of_every_counter_but_requests_in_flight() -> None:
    after = SubjectLimitSet().with_reset()

    assert {each.identity for each in after.resets} == set(COUNTED)
    assert {each.reset_generation for each in after.resets} == {1}
    assert not any(each.unit is PARALLEL for each in after.resets)
    assert len(COUNTED) == 12


def test_a_generation_never_falls_behind_one_that_a_limit_names_itself() -> None:
    named = Limit(unit=TOKENS, window=DAY, capacity=1, reset_generation=4)
    held = SubjectLimitSet(limits=(named,), resets=(reset(TOKENS, DAY, 1),))

    assert held.generation_of((TOKENS, DAY)) == 4
    assert held.with_reset([(TOKENS, DAY)]).resets == (reset(TOKENS, DAY, 5),)


def test_only_a_subject_without_limits_and_resets_is_forgotten() -> None:
    assert SubjectLimitSet().is_empty
    for held in (
        SubjectLimitSet(limits=(limit(TOKENS, DAY),)),
        SubjectLimitSet(temporary=(temporary(limit(TOKENS, DAY)),)),
        SubjectLimitSet(resets=(reset(TOKENS, DAY, 1),)),
    ):
        assert not held.is_empty


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        (temporary(limit(PARALLEL, DAY)), "limits[1].limit.window"),
        (temporary(limit(TOKENS, MINUTE, -1)), "limits[1].limit.capacity"),
        (temporary(limit(TOKENS, MINUTE), NOW), "limits[1].until"),
        (temporary(limit(TOKENS, DAY)), "limits[1]"),
    ],
)
def test_a_temporary_limit_that_is_none_is_refused_with_its_place(
    wrong: TemporaryLimit, field: str
) -> None:
    with pytest.raises(InvalidError) as caught:
        check_temporary([temporary(limit(TOKENS, DAY)), wrong], now=NOW, field="limits")

    assert caught.value.field == field


def test_what_has_no_memory_is_not_reset() -> None:
    check_resettable(COUNTED, field="limits")
    for wrong, field in (
        ((PARALLEL, NONE), "limits[1].unit"),
        ((SPEND, MINUTE), "limits[1].window"),
    ):
        with pytest.raises(InvalidError) as caught:
            check_resettable([(TOKENS, DAY), wrong], field="limits")
        assert caught.value.field == field


def test_temporary_limits_and_resets_rest_as_text_and_numbers() -> None:
    precise = datetime(2026, 11, 21, 12, 0, 0, 250_000, tzinfo=UTC)
    held = (temporary(limit(SPEND, MONTH, 9), precise), temporary(limit(TOKENS, DAY)))

    rested = temporary_to_json(held)

    assert [item["until"] for item in rested] == [
        "2026-11-21T12:00:00.250000Z",
        "2026-11-21T13:00:00Z",
    ]
    assert temporary_from_json(rested) == held
    (rested_reset,) = resets_to_json([reset(TOKENS, DAY, 2)])
    assert resets_from_json([rested_reset]) == (reset(TOKENS, DAY, 2),)
    assert limits_pb2.CounterReset(**rested_reset).reset_generation == 2
