"""Start a program so that it dies with the process that started it, whatever kills that one.

Run as a file, not as a module, by an isolated interpreter, so that it costs a few milliseconds:

    python -I -S dev_launcher.py deathsig|watch PARENT_PID PROGRAM [ARGUMENT …]

It replaces itself with the program, so the program keeps the process id and no trace of the launcher is left in its
argument vector. `deathsig` asks the Linux kernel to kill the program when its parent's thread ends; this outlives the
exec. `watch` is for other systems: a second process looks after the parent and kills the program's process group when
the parent is gone.
"""

import ctypes
import os
import signal
import sys
import time

_PR_SET_PDEATHSIG = 1
# 0.2 s: far below the 5 s within which nothing may be left, and far above what the look costs.
_WATCH_INTERVAL_S = 0.2


def main(arguments: list[str]) -> None:
    """Bind this process to its parent, then become the program."""
    mode, parent_pid, program = arguments[0], int(arguments[1]), arguments[2:]
    if mode == "deathsig":
        _die_with_parent()
    else:
        _watch(parent_pid)
    # The parent may have died before the bond was made; then nobody would ever end this program.
    if os.getppid() != parent_pid:
        os._exit(1)
    try:
        os.execvp(program[0], program)  # noqa: S606 - no shell is wanted
    except OSError as error:
        sys.stderr.write(f"{program[0]} cannot be started: {error.strerror}\n")
        os._exit(127)


def _die_with_parent() -> None:
    """Have the kernel send SIGKILL to this process when the thread that forked it ends."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        os._exit(1)


def _watch(parent_pid: int) -> None:
    """Leave a process behind that ends this process' group when the parent is gone.

    It is forked twice, so that the program has no child that it knows nothing about.
    """
    program_pid = os.getpid()
    first = os.fork()
    if first:
        os.waitpid(first, 0)
        return
    if os.fork():
        os._exit(0)
    # An inherited pipe that stayed open here would hide the program's end from its reader.
    os.closerange(0, 1024)
    while _is_alive(program_pid):
        if not _is_alive(parent_pid):
            os.killpg(program_pid, signal.SIGKILL)
        time.sleep(_WATCH_INTERVAL_S)
    os._exit(0)


def _is_alive(pid: int) -> bool:
    """Tell whether a process of this user has that id."""
    try:
        os.kill(pid, 0)
    except OSError:
        return False
    return True


if __name__ == "__main__":
    main(sys.argv[1:])
