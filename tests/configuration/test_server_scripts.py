"""Two nodes that were written apart hear the same control planes and answer alike."""

from collections.abc import Iterator

import pytest
from tollkeeper.config.v1 import config_service_pb2 as pb

from dataplane.control.holdings import Holdings
from tests.configuration.reference import Place, ReferenceNode
from tests.configuration.server_scripts import SCRIPTS, Script
from tests.control.watching import Watching, until, watching


@pytest.mark.parametrize("name", SCRIPTS)
async def test_a_node_answers_a_control_plane_as_the_reference_does(name: str) -> None:
    reference = ReferenceNode()
    async with watching() as node:
        for said, wanted in steps(SCRIPTS[name](), reference):
            node.control_plane.say(*said)
            await check_answer(node, wanted)
        await until(lambda: place_in_force(node.watch.holdings) == reference.place)
        assert resources_of(node.watch.holdings) == {
            key: (each.revision, each.payload) for key, each in reference.resources.items()
        }
        await until(lambda: revoked_by(node) == reference.revoked)


def steps(
    script: Script, reference: ReferenceNode
) -> Iterator[tuple[Script, pb.StreamConfigRequest]]:
    """Yield messages up to each that is answered, and the reference's answer."""
    said: Script = []
    for message in script:
        said.append(message)
        answer = reference.take(message)
        if answer is not None:
            yield said, answer
            said = []


async def check_answer(node: Watching, wanted: pb.StreamConfigRequest) -> None:
    kind = wanted.WhichOneof("message")
    while True:
        heard = await node.control_plane.heard.get()
        found = heard.WhichOneof("message")
        if found in ("ack", "nack", "revocation_ack"):
            break
    assert found == kind, heard
    match kind:
        case "ack":
            assert heard.ack.transfer_id == wanted.ack.transfer_id
            assert heard.ack.applied == wanted.ack.applied
            assert quarantined(heard.ack) == quarantined(wanted.ack)
        case "nack":
            assert heard.nack.transfer_id == wanted.nack.transfer_id
            assert heard.nack.applied == wanted.nack.applied
            assert heard.nack.reason == wanted.nack.reason, heard
        case "revocation_ack":
            wanted_id = wanted.revocation_ack.revocation_id
            assert heard.revocation_ack.revocation_id == wanted_id


def quarantined(ack: pb.Ack) -> set[tuple[int, str]]:
    return {(each.resource.kind, each.resource.id) for each in ack.quarantined}


def place_in_force(holdings: Holdings) -> Place:
    position = holdings.position
    return position.config_epoch, position.revision, position.digest


def resources_of(holdings: Holdings) -> dict[tuple[int, str], tuple[int, bytes]]:
    return {key: (each.revision, each.payload) for key, each in holdings.resources.items()}


def revoked_by(node: Watching) -> set[tuple[str, str]]:
    return set(node.current.revocations)
