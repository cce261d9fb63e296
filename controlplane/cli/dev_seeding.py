"""What a start of `tollkeeper dev` creates before the data planes start, and what it leaves alone."""

from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from controlplane.cli.dev_memory import Memory
from controlplane.cli.dev_providers import Found, RealProvider
from controlplane.cli.endpoints import DialectName
from controlplane.cli.processes import Report


class Seeder(Protocol):
    """Creates what the first start promises; see `dev_seed.Seeder`."""

    async def seed(self, mock_url: str, api_key: str | None) -> str:
        """Create what is missing; return the key's text."""

    async def mint_key(self) -> str:
        """Create or replace the key; return its text."""

    async def move_mock(self, former_url: str, mock_url: str) -> None:
        """Point the provider to where the mock is now."""

    async def register(
        self, provider: RealProvider, former_endpoints: Collection[Mapping[DialectName, str]]
    ) -> str | None:
        """Register a real provider; return why something was left alone."""


SeederFactory = Callable[[str, str], AbstractAsyncContextManager[Seeder]]


class Seeding:
    """The demonstration's resources, created once, and the real providers, registered when they change."""

    def __init__(self, memory: Memory, real: Found, seeder: SeederFactory, report: Report) -> None:
        self._memory = memory
        self._real = real
        self._seeder = seeder
        self._report = report

    @property
    def is_needed(self) -> bool:
        """Whether something is to be created, whatever the mock's port will be."""
        return not self._memory.is_seeded or bool(self._unregistered())

    async def settle(self, mock_url: str, admin_address: str, admin_token: str) -> str:
        """Create what is missing and return the key's text.

        Raises:
            StartError: The control plane refused a call or did not answer it.
        """
        memory = self._memory
        for complaint in self._real.complaints:
            self._report(complaint)
        if memory.api_key and memory.mock_url == mock_url and not self.is_needed:
            return memory.api_key
        async with self._seeder(admin_address, admin_token) as seeder:
            if not memory.is_seeded:
                memory.keep_api_key(await seeder.seed(mock_url, memory.api_key))
            elif memory.mock_url and memory.mock_url != mock_url:
                await seeder.move_mock(memory.mock_url, mock_url)
            if not memory.api_key:
                memory.keep_api_key(await seeder.mint_key())
            memory.keep_seeded(mock_url)
            for provider in self._unregistered():
                await self._register(seeder, provider)
        return memory.api_key or ""

    def _unregistered(self) -> list[RealProvider]:
        return [each for each in self._real.providers if not self._memory.is_registered(each)]

    async def _register(self, seeder: Seeder, provider: RealProvider) -> None:
        self._memory.begin_registration(provider)
        complaint = await seeder.register(provider, self._memory.former_endpoints(provider))
        self._memory.keep_registration(provider)
        # Calls to these cost the user money.
        models = ", ".join(provider.models)
        self._report(complaint or f"calls of {models} go to {provider.name}, with your own key")
