"""The directed cases, against the script that production runs, on every server that it runs on."""

import pytest

from tests.limits.boundaries import CASES
from tests.limits.driver import Case, Driver


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_it_holds_that(case: Case, redis_under_test: str) -> None:
    with Driver(redis_under_test) as driver:
        case(driver)
