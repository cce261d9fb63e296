"""Long work gives the event loop back."""

import asyncio
import time
import weakref

from dataplane.control.slices import Remains, Slices, let_go


class Thing:
    """Something that can be watched."""


async def test_others_run_whenever_a_slice_has_passed_and_not_before() -> None:
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            ticks += 1
            await asyncio.sleep(0)

    ticking = asyncio.create_task(tick())
    slices = Slices(seconds=0.005)
    for _ in range(100):
        await slices.breathe()
        if slices.is_over:
            break
        assert ticks == 0

    ends_at = time.perf_counter() + 0.02
    while time.perf_counter() < ends_at:
        pass
    assert slices.is_over
    await slices.breathe()
    ticking.cancel()

    # One turn would not do: to read one message takes several.
    assert ticks > 1
    assert not slices.is_over


async def test_what_is_let_go_of_is_freed_whole() -> None:
    listed = [Thing() for _ in range(1_001)]
    mapped = {number: Thing() for number in range(10_001)}
    alive = [*map(weakref.ref, listed), *map(weakref.ref, mapped.values())]
    things: list[Remains] = [listed, {}, mapped]
    del listed, mapped

    await let_go(things)

    assert things == []
    assert not any(each() for each in alive)
