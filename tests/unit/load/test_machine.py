import os

import pytest

from tests.load.machine import core_busy_seconds_in, cpu_seconds_in

TICKS_PER_S = os.sysconf("SC_CLK_TCK")
CORES = (
    "cpu  9 9 9 9 9 9 9 9 9 9\ncpu0 100 20 30 4000 50 6 7 8 0 0\ncpu1 1 1 1 1 1 1 1 1 0 0\nintr 1\n"
)


def test_the_cpu_time_of_a_process_is_found_behind_any_name() -> None:
    stat = (
        f"42 (a (odd) name) S 1 42 42 0 -1 4194560 500 0 0 0 {3 * TICKS_PER_S} {TICKS_PER_S} 7 7 20"
    )

    assert cpu_seconds_in(stat) == 4.0


def test_a_core_is_busy_with_processes_and_with_what_the_host_took() -> None:
    assert core_busy_seconds_in(CORES, 0) == pytest.approx((100 + 20 + 30 + 8) / TICKS_PER_S)


def test_a_core_that_is_not_there_is_an_error() -> None:
    with pytest.raises(LookupError, match="no core 7"):
        core_busy_seconds_in(CORES, 7)
