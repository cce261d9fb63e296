"""The directed cases of `boundaries.py`, against the script that production runs."""

import pytest

from tests.limits.boundaries import CASES, Case
from tests.limits.driver import Driver


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_it_holds_that(case: Case, redis_url: str) -> None:
    with Driver(redis_url) as driver:
        case(driver)
