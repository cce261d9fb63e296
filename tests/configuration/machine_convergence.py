"""What must come true in the state machine when all faults are over."""

import asyncio
from typing import Final

from controlplane.snapshots.references import ResourceKey
from tests.configuration.contents import read_content
from tests.configuration.machine import World
from tests.configuration.machine_planes import Host

CONVERGENCE_S: Final = 20.0


async def converge(world: World) -> None:
    """End all faults; every node must have what the database implies within seconds."""
    await world.start_service()
    await world.write(world.rows.heal)
    for host in world.hosts:
        host.proxy.cut_after_bytes = None
        world.reconnect(host)
        if host.life is None:
            await host.start()
    loop = asyncio.get_running_loop()
    ends_at = loop.time() + CONVERGENCE_S
    while missing := [each for each in world.hosts if not _has_converged(world, each)]:
        if loop.time() > ends_at:
            world.truths.failures += [_lament(world, each) for each in missing]
            break
        await asyncio.sleep(0.01)  # polled: what is awaited happens in other tasks
    world.truths.check(world.hosts)


def _has_converged(world: World, host: Host) -> bool:
    life, plane = host.life, world.service.running
    assert life is not None
    assert plane is not None
    content = read_content(world.service.path)
    position = life.watch.holdings.position
    if (position.config_epoch, position.revision) != (content.config_epoch, content.revision):
        return False
    watchers = [each for each in plane.fleet.watchers() if each.node_id == host.name]
    bad = {str(ResourceKey(*key)) for key in content.in_scope(host.scope).bad_leaves}  # type: ignore[arg-type] # a number
    told = [{text.partition(":")[0] for text in each.quarantined} for each in watchers]
    is_whole = host.scope or position.digest == plane.fleet.current.digest
    return bool(is_whole) and life.current.is_serving and told == [bad]


def _lament(world: World, host: Host) -> str:
    life, plane = host.life, world.service.running
    assert life is not None
    assert plane is not None
    content = read_content(world.service.path)
    said = [
        (each.refusal, each.problems, each.quarantined, each.applied)
        for each in plane.fleet.watchers()
        if each.node_id == host.name
    ]
    return (
        f"{host.name} stays at {life.watch.holdings.position}, which is not"
        f" {(content.config_epoch, content.revision)}: {said}, {plane.publisher.problems}"
    )
