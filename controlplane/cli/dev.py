"""The command `tollkeeper dev`: everything on this machine, each program in a process of its own."""

import asyncio
import contextlib
import importlib
import os
import signal
import threading
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Annotated

import typer

from controlplane.cli.dev_environment import unknown_settings
from controlplane.cli.dev_report import Credentials, json_line, summary
from controlplane.cli.dev_secrets import InUseError, exclusive_use, private_directory
from controlplane.cli.dev_seeding import Seeder, SeederFactory
from controlplane.cli.dev_stack import Commands, Options, Stack
from controlplane.cli.processes import Report, StartError

_SEEDING = "controlplane.cli.dev_seed"
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def dev(
    port: Annotated[
        int,
        typer.Option(
            min=0,
            max=65_535,
            envvar="TOLLKEEPER_PORT",
            help="Port of the first data plane; 0 takes a free one. Others take free ones.",
        ),
    ] = 8080,
    admin_port: Annotated[
        int,
        typer.Option(
            min=0,
            max=65_535,
            envvar="TOLLKEEPER_ADMIN_PORT",
            help="Port of the gRPC admin API; 0 takes a free one.",
        ),
    ] = 50051,
    console_port: Annotated[
        int,
        typer.Option(
            min=0,
            max=65_535,
            envvar="TOLLKEEPER_CONSOLE_PORT",
            help="Reserved for the web console; nothing listens there yet.",
        ),
    ] = 8081,
    data_dir: Annotated[
        Path,
        typer.Option(
            file_okay=False,
            envvar="TOLLKEEPER_DATA_DIR",
            help="Where databases, secrets and credentials are kept.",
        ),
    ] = Path(".tollkeeper"),
    replicas: Annotated[int, typer.Option(min=1, max=64, help="How many data planes.")] = 1,
    no_restart: Annotated[
        bool, typer.Option("--no-restart", help="Leave a program that died alone.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one line of JSON when everything serves.")
    ] = False,
) -> None:
    """Start a control plane, data planes, Redis, SQLite and a mock provider on this machine.

    The first start creates the organization demo with a user and a key; every start prints the
    key and a command that uses it. With OPENAI_API_KEY, ANTHROPIC_API_KEY or GEMINI_API_KEY in the
    environment, that provider answers for its own models. Ctrl-C drains open streams and stops
    everything; a second one kills.
    """
    del console_port  # Accepted now, so that scripts that name it go on working.
    if unknown := unknown_settings(os.environ):
        _report(f"unknown setting: {', '.join(unknown)}")
        raise typer.Exit(2)
    if port and port == admin_port:
        raise typer.BadParameter("--port and --admin-port must differ")
    options = Options(data_dir.resolve(), port, admin_port, replicas, restarts=not no_restart)

    def show(credentials: Credentials) -> None:
        text = json_line(credentials) if as_json else summary(credentials, str(options.data_dir))
        typer.echo(text)

    raise typer.Exit(run(options, os.environ, show))


def run(
    options: Options,
    environ: Mapping[str, str],
    show: Callable[[Credentials], None],
    *,
    commands: Commands | None = None,
    seeder: SeederFactory | None = None,
) -> int:
    """Run a stack until a signal and return the exit code; must be called in the main thread.

    Args:
        options: What the user chose.
        environ: The user's environment.
        show: Called once, when every data plane has applied the configuration.
        commands: Other programs than those of this project.
        seeder: Another way to create what the first start promises.
    """
    try:
        private_directory(options.data_dir)
        with exclusive_use(options.data_dir):
            stack = Stack(
                options, environ, _report, commands=commands or Commands(), seeder=seeder or _seeder
            )
            if seeder is None and stack.needs_seeding:
                # A third of a second, while the control plane takes seconds to come up.
                threading.Thread(target=importlib.import_module, args=(_SEEDING,)).start()
            return asyncio.run(_serve(stack, show, _report))
    except (InUseError, StartError) as error:
        _report(str(error))
    except OSError as error:
        _report(f"cannot use {error.filename or options.data_dir}: {error.strerror}")
    return 1


async def _serve(stack: Stack, show: Callable[[Credentials], None], report: Report) -> int:
    """Start the stack, wait for a signal, stop it; return the exit code.

    Raises:
        StartError: It could not be started; what had been started is stopped.
    """
    stop, kill = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in _SIGNALS:
        loop.add_signal_handler(number, lambda: kill.set() if stop.is_set() else stop.set())
    starting = asyncio.create_task(stack.start())
    stopping = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if starting.done():
            show(starting.result())
            await stopping
        report("stopping; open streams may finish; Ctrl-C again kills")
    finally:
        starting.cancel()
        stopping.cancel()
        await asyncio.gather(starting, stopping, return_exceptions=True)
        await stack.stop(kill)
    return 1 if kill.is_set() else 0


@contextlib.asynccontextmanager
async def _seeder(admin_address: str, admin_token: str) -> AsyncIterator[Seeder]:
    """Connect to the control plane; gRPC is imported only here, because most starts need none."""
    from controlplane.cli.dev_seed import seeder

    async with seeder(admin_address, admin_token) as connected:
        yield connected


def _report(line: str) -> None:
    """Tell the user on standard error; that nobody listens any more must not stop the stack."""
    with contextlib.suppress(OSError):
        typer.echo(f"tollkeeper dev: {line}", err=True)
