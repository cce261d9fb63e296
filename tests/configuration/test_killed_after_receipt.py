"""What a receipt says holds: a node that was killed as soon as it had acknowledged refuses after its restart.

The control plane is away by then, so that nothing but the node's own disk can tell it.
"""

import os
import signal
from pathlib import Path

import pytest
from tollkeeper.admin.v1 import api_key_service_pb2 as key_pb

from tests.configuration.planes import Caller, Plane, Planes, planes_in
from tests.configuration.proxy import Proxy, proxying
from tests.e2e.calls import client_of
from tests.e2e.waiting import eventually_async

NODE = "mortal"
WAIT_MS = 10_000
ROUNDS = [
    pytest.param(3, id="small"),
    pytest.param(30, id="full", marks=pytest.mark.long),
]


@pytest.mark.parametrize("rounds", ROUNDS)
async def test_a_node_killed_right_after_its_receipt_refuses_the_key_when_it_is_back_on_its_own(
    rounds: int, tmp_path: Path
) -> None:
    async with planes_in(tmp_path) as planes, proxying(planes.control_plane.address) as proxy:
        staying = await planes.new_caller()
        plane = await planes.started(NODE, proxy.address)
        gone: list[Caller] = []
        for _ in range(rounds):
            gone.append(await planes.new_caller())
            # Also: its stream is open, for nobody else could have told it.
            await planes.until_known(gone[-1], plane)

            await revoke_and_kill(planes, plane, gone[-1])
            away(proxy)
            plane = await planes.started(NODE, proxy.address)

            await check(planes, plane, refused=gone, served=staying)
            proxy.point_at(planes.control_plane.address)


async def revoke_and_kill(planes: Planes, plane: Plane, caller: Caller) -> None:
    """Kill a node in the moment in which its receipt is here."""
    receipt = await planes.api.api_keys.RevokeApiKey(
        key_pb.RevokeApiKeyRequest(name=caller.key, wait_ms=WAIT_MS)
    )
    os.kill(plane.pid, signal.SIGKILL)
    await plane.kill()
    assert [(each.node, each.is_kept) for each in receipt.applied] == [(NODE, True)]
    assert not receipt.missing


def away(proxy: Proxy) -> None:
    """Let nobody reach the control plane."""
    proxy.point_at(None)
    proxy.cut()


async def check(planes: Planes, plane: Plane, *, refused: list[Caller], served: Caller) -> None:
    """Check who is let in; a list of models asks no Redis, which would know it too."""
    found = [await planes.status(plane, headers=each.headers) for each in refused]
    assert found == [401] * len(refused)
    async with client_of(served.api_key) as client:

        async def serves() -> bool:
            answer = await client.chat(plane.base_url)
            # On a busy machine Redis may be late once.
            assert answer.status == 200 or answer.code == "limits_unavailable"
            return answer.status == 200

        await eventually_async(serves)
        late = await client.chat(plane.base_url, api_key=refused[-1].api_key)
    assert (late.status, late.code) == (401, "invalid_api_key")
