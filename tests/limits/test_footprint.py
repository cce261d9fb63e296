"""What counters cost Redis: memory, as long as somebody calls."""

from dataplane.embedded_redis import RunningRedis
from tests.load.footprint import LAYERS, footprint

MOST_BYTES = 1536


def test_an_active_user_with_ten_layers_takes_less_than_one_and_a_half_kibibytes(
    own_redis: RunningRedis,
) -> None:
    found = footprint(own_redis.url, users=500)

    # All but the parallel set, which is gone with its last request.
    assert found.counted_keys == LAYERS - 1
    assert 500 < found.counters < MOST_BYTES
    # What else the server needs for them: tables of keys and of their lifetimes.
    assert found.server < 2 * MOST_BYTES
