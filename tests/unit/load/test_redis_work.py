from tests.load.redis_work import RedisWork, work_in


def test_script_calls_are_counted_by_whatever_command_they_come() -> None:
    cpu = {"used_cpu_user": 1.5, "used_cpu_sys": 0.5, "used_cpu_user_children": 9.0}
    commands = {
        "cmdstat_evalsha": {"calls": 10, "usec": 2_000_000, "usec_per_call": 2e5},
        "cmdstat_fcall": {"calls": 5, "usec": 500_000, "usec_per_call": 1e5},
        "cmdstat_get": {"calls": 99, "usec": 99, "usec_per_call": 1.0},
    }

    assert work_in(cpu, commands) == RedisWork(2.0, 15, 2.5)


def test_work_is_what_was_added_between_two_looks() -> None:
    assert RedisWork(3.0, 15, 2.5).since(RedisWork(1.0, 5, 1.0)) == RedisWork(2.0, 10, 1.5)
