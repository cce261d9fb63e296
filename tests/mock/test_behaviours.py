from itertools import permutations

import pytest

from dataplane.mock.behaviours import Behaviour, UnknownModelError, behaviour_of


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("mock-echo", Behaviour()),
        ("unpriced-mock", Behaviour()),
        ("gpt-x", Behaviour()),
        ("mock-tokens-64", Behaviour(tokens=64)),
        ("mock-tokens-0", Behaviour(tokens=0)),
        ("mock-slow-250", Behaviour(slow_ms=250)),
        ("mock-pace-20", Behaviour(pace_ms=20)),
        ("mock-status-529", Behaviour(status=529)),
        ("mock-hang", Behaviour(hangs=True)),
        ("mock-cut-0", Behaviour(cut_events=0)),
        ("mock-no-usage", Behaviour(reports_usage=False)),
    ],
)
def test_a_model_name_says_what_happens(model: str, expected: Behaviour) -> None:
    assert behaviour_of(model) == expected


def test_parts_combine_in_any_order() -> None:
    expected = Behaviour(tokens=64, pace_ms=20, slow_ms=5, reports_usage=False)
    for parts in permutations(["tokens-64", "pace-20", "no-usage", "slow-5"]):
        assert behaviour_of("-".join(["mock", *parts])) == expected


@pytest.mark.parametrize(
    "model",
    [
        "mock",
        "mock-",
        "mockingbird",
        "mock-sing",
        "mock-echo-sing",
        "mock-echo-",
        "mock-echo\n",
        "mock--echo",
        "mock-no",
        "mock-tokens",
        "mock-tokens-x",
        "mock-tokens--1",
        "mock-tokens-64-64",
        "mock-tokens-1-tokens-2",
        "mock-tokens-1000001",
        "mock-tokens-٣",
        "mock-echo-3",
        "mock-hang-3",
        "mock-echo-tokens-3",
        "mock-status-200",
        "mock-status-600",
        "mock-slow-3600001",
        "mock_echo",
    ],
)
def test_a_name_that_is_not_understood_is_an_unknown_model(model: str) -> None:
    with pytest.raises(UnknownModelError):
        behaviour_of(model)
