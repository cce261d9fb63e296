"""What Redis does for the requests of a phase, by its own count."""

from typing import Any, Final

import msgspec
import redis

_SCRIPTS: Final = ("cmdstat_evalsha", "cmdstat_eval", "cmdstat_fcall")
_TIMEOUT_S: Final = 5.0


class RedisWork(msgspec.Struct, frozen=True):
    """Counters of a server since its start: CPU seconds, script calls, seconds in scripts."""

    cpu_s: float
    script_calls: int
    script_s: float

    def since(self, before: "RedisWork") -> "RedisWork":
        """Return what was added after `before`."""
        return RedisWork(
            self.cpu_s - before.cpu_s,
            self.script_calls - before.script_calls,
            self.script_s - before.script_s,
        )


def redis_work(url: str) -> RedisWork:
    """Read the counters of the server at `url`.

    Raises:
        redis.RedisError: It does not answer.
    """
    with redis.Redis.from_url(url, socket_timeout=_TIMEOUT_S) as client:
        return work_in(client.info("cpu"), client.info("commandstats"))


def server_pid(url: str) -> int:
    """Return the process of the server at `url`, which is on this machine.

    Raises:
        redis.RedisError: It does not answer.
    """
    with redis.Redis.from_url(url, socket_timeout=_TIMEOUT_S) as client:
        return int(client.info("server")["process_id"])


def work_in(cpu: dict[str, Any], commands: dict[str, Any]) -> RedisWork:  # as INFO is parsed
    """Return the counters in two sections of INFO."""
    scripts = [commands[name] for name in _SCRIPTS if name in commands]
    return RedisWork(
        cpu_s=cpu["used_cpu_user"] + cpu["used_cpu_sys"],
        script_calls=sum(each["calls"] for each in scripts),
        script_s=sum(each["usec"] for each in scripts) / 1e6,
    )
