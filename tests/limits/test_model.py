"""A model and the script, driven side by side through every order of events.

After each step the answers, the balances and resets, the reservations, leases and lists are equal,
and promises L1 to L4 hold; equality after a refusal is L5, after a repetition L6; what was settled
is what the ledger has (L8), as long as nothing was lost.
"""

from dataclasses import replace
from typing import Final

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

from dataplane.domain.limiting import Layer, LayerPlan, SubjectKind, Unit, Window, plan_of
from tests.limits.machine import LimiterMachine
from tests.limits.machine_marks import MarkingMachine
from tests.limits.plans import budget, layer, rate, shadowed


def two_users(*layers: Layer) -> tuple[LayerPlan, LayerPlan]:
    """Return the plans of two users that share every layer that is not a user's own."""
    return tuple(  # type: ignore[return-value] # two names make a pair
        plan_of(
            replace(each, subject_id=user) if each.subject_kind is SubjectKind.USER else each
            for each in layers
        )
        for user in ("u_1", "u_2")
    )


def shared(original: Layer) -> Layer:
    return replace(original, subject_kind=SubjectKind.ORGANIZATION, subject_id="o_1")


RATE: Final = (
    shared(rate(5, 60_000, burst=4)),
    rate(7, 60_000, burst=3),
    shadowed(rate(11, 60_000, burst=1, kind=SubjectKind.KEY, subject_id="k_1")),
)
ROLLING: Final = (
    shared(layer(Unit.TOKENS, Window.MINUTE, 120)),
    layer(Unit.REQUESTS, Window.MINUTE, 3),
    layer(Unit.TOKENS, Window.MINUTE, 90),
)
PERIOD: Final = (
    shared(layer(Unit.REQUESTS, Window.DAY, 5)),
    shared(layer(Unit.TOKENS, Window.TOTAL, 400)),
    layer(Unit.TOKENS, Window.DAY, 90),
)
SPEND: Final = (
    shared(budget(200, Window.MONTH)),
    budget(90),
)
SOFT: Final = (
    shared(budget(150, Window.MONTH, is_hard=False)),
    budget(60, is_hard=False),
    shadowed(budget(40, Window.TOTAL, is_hard=False)),
)
PARALLEL: Final = (
    shared(layer(Unit.PARALLEL, Window.NONE, 3)),
    layer(Unit.PARALLEL, Window.NONE, 2),
)
MIX: Final = (
    rate(7, 60_000, burst=3),
    *ROLLING,
    *PERIOD,
    *SPEND,
    shared(budget(120, Window.TOTAL, is_hard=False)),
    *PARALLEL,
    shadowed(layer(Unit.REQUESTS, Window.DAY, 2, SubjectKind.KEY, "k_1")),
)
PROFILES: Final = {
    "rate": two_users(*RATE),
    "rolling": two_users(*ROLLING),
    "period": two_users(*PERIOD),
    "spend": two_users(*SPEND),
    "soft": two_users(*SOFT),
    "parallel": two_users(*PARALLEL),
    "mix": two_users(*MIX),
}


def explore(
    redis_url: str, profile: str, examples: int, kind: type[LimiterMachine] = LimiterMachine
) -> None:
    plans = PROFILES[profile]

    class Machine(kind):  # type: ignore[valid-type,misc] # one of two machines
        def __init__(self) -> None:
            super().__init__(redis_url, plans)

    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


@pytest.mark.parametrize("profile", PROFILES)
def test_the_script_and_the_model_agree(profile: str, redis_url: str) -> None:
    # 200 in all.
    explore(redis_url, profile, examples=28 if profile != "mix" else 32)


def test_the_script_and_the_model_agree_on_every_server(redis_under_test: str) -> None:
    explore(redis_under_test, "mix", examples=8)


def test_the_script_and_the_model_agree_on_who_was_revoked(redis_under_test: str) -> None:
    explore(redis_under_test, "soft", examples=16, kind=MarkingMachine)


@pytest.mark.long
def test_the_script_and_the_model_agree_at_length_on_who_was_revoked(redis_url: str) -> None:
    explore(redis_url, "mix", examples=500, kind=MarkingMachine)


@pytest.mark.long
@pytest.mark.parametrize("examples", [200, 714])
@pytest.mark.parametrize("profile", PROFILES)
def test_the_script_and_the_model_agree_at_length(
    profile: str, examples: int, redis_url: str
) -> None:
    # 714 for each of the seven profiles: 5,000 in all.
    explore(redis_url, profile, examples=examples)
