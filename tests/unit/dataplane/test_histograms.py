"""Durations in buckets; both planes have the same."""

import pytest

from controlplane.domain import histograms as of_control_plane
from dataplane.domain import histograms as of_data_plane

BUCKETS = (of_control_plane.Buckets, of_data_plane.Buckets)


@pytest.mark.parametrize("make", BUCKETS)
def test_a_duration_counts_in_every_bucket_that_it_fits_in(make: type) -> None:
    buckets = make((0.1, 1.0))
    for seconds in (0.05, 0.1, 0.5, 7.0):
        buckets.observe(seconds)

    assert buckets.cumulative() == [("0.1", 2.0), ("1.0", 3.0), ("+Inf", 4.0)]
    assert buckets.sum_seconds == pytest.approx(7.65)


@pytest.mark.parametrize("make", BUCKETS)
def test_a_clock_that_went_back_counts_as_no_time(make: type) -> None:
    buckets = make((0.1,))
    buckets.observe(-3.0)

    assert buckets.cumulative() == [("0.1", 1.0), ("+Inf", 1.0)]
    assert buckets.sum_seconds == 0


def test_both_planes_have_the_same_bounds() -> None:
    assert of_control_plane.SECONDS == of_data_plane.SECONDS
