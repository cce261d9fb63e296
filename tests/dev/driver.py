"""The command `tollkeeper dev` with stand-ins in place of its programs: `python driver.py [OPTION …]`.

What its seeder does goes to the file STANDIN_LOG names. STANDIN_SEED_FAILS makes it fail after the key was made,
STANDIN_REGISTRATION_FAILS while it registers a real provider.
"""

import contextlib
import functools
import os
import sys
from collections.abc import AsyncIterator, Collection, Mapping
from pathlib import Path

import typer

from controlplane.cli import dev as command
from controlplane.cli.dev_providers import RealProvider
from controlplane.cli.dev_seeding import Seeder
from controlplane.cli.dev_stack import Commands
from controlplane.cli.endpoints import DialectName
from tests.dev.standin import log

STANDIN = Path(__file__).with_name("standin.py")


class RecordingSeeder:
    async def seed(self, mock_url: str, api_key: str | None) -> str:
        log(f"seed {mock_url} {api_key or 'without key'}")
        if os.environ.get("STANDIN_SEED_FAILS"):
            os.kill(os.getpid(), 9)
        return api_key or await self.mint_key()

    async def mint_key(self) -> str:
        api_key = f"tk_live_{os.urandom(8).hex()}"
        log(f"mint {api_key}")
        return api_key

    async def move_mock(self, former_url: str, mock_url: str) -> None:
        log(f"move {former_url} {mock_url}")

    async def register(
        self, provider: RealProvider, former_endpoints: Collection[Mapping[DialectName, str]]
    ) -> str | None:
        log(f"register {provider.name} {len(former_endpoints)}")
        if os.environ.get("STANDIN_REGISTRATION_FAILS"):
            os.kill(os.getpid(), 9)
        return None


@contextlib.asynccontextmanager
async def recording_seeder(admin_address: str, admin_token: str) -> AsyncIterator[Seeder]:
    log(f"connect {admin_address} {len(admin_token)}")
    yield RecordingSeeder()


def main() -> None:
    def standin(role: str) -> tuple[str, ...]:
        return (sys.executable, "-S", str(STANDIN), role)

    commands = Commands(*map(standin, ("controlplane", "dataplane", "redis", "mock")))
    command.run = functools.partial(command.run, commands=commands, seeder=recording_seeder)
    app = typer.Typer()
    app.command()(command.dev)
    app()


if __name__ == "__main__":
    main()
