"""Counters that do not stand still while maintenance looks at them."""

from collections.abc import Awaitable, Callable, Sequence

from dataplane.domain.counters import Reading
from dataplane.maintenance.counter_table import CounterTable, Place
from dataplane.maintenance.ports import Desk


class BusyTable(CounterTable):
    """The counters, of which requests move some between reading and writing."""

    def __init__(self, desk: Desk, meanwhile: Callable[[], Awaitable[None]]) -> None:
        super().__init__(desk)
        self._meanwhile = meanwhile

    async def read(self, places: Sequence[Place]) -> list[Reading | None]:
        readings = await super().read(places)
        await self._meanwhile()
        return readings
