"""Control planes that are broken or evil: what they say is refused or ends the stream, and nothing else happens."""

import asyncio
from dataclasses import dataclass

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st
from tollkeeper.config.v1 import config_service_pb2 as pb

from tests.configuration.reference import ReferenceNode, place_of
from tests.configuration.server_scripts import SCRIPTS, Database, Script, api_key, basics
from tests.control.watching import Watching, until, watching

MAX_RESOURCES = 200


@dataclass(frozen=True)
class Mutation:
    """What happens to a script on its way, in terms of fractions of its length."""

    kind: str
    message: float
    place: float
    size: int
    noise: bytes


MUTATIONS = st.builds(
    Mutation,
    kind=st.sampled_from(["flip", "cut", "insert", "replace", "drop", "repeat", "swap", "splice"]),
    message=st.floats(0, 1, exclude_max=True),
    place=st.floats(0, 1, exclude_max=True),
    size=st.integers(1, 40),
    noise=st.binary(min_size=1, max_size=40),
)
SCRIPT_NAMES = st.sampled_from(sorted(SCRIPTS))


def mutated(script: Script, mutations: list[Mutation]) -> Script:
    """Return what arrives; what is no message of the contract any more is left out."""
    messages = [message.SerializeToString() for message in script]
    for mutation in mutations:
        if not messages:
            break
        at = int(mutation.message * len(messages))
        place = int(mutation.place * (len(messages[at]) + 1))
        match mutation.kind:
            case "drop":
                del messages[at]
            case "repeat":
                messages.insert(at, messages[at])
            case "swap":
                other = (at + mutation.size) % len(messages)
                messages[at], messages[other] = messages[other], messages[at]
            case "splice":
                other_bytes = messages[(at + mutation.size) % len(messages)]
                messages[at] = messages[at][:place] + other_bytes[place:]
            case _:
                messages[at] = changed(messages[at], mutation, place)
    return [parsed for parsed in map(parsed_or_none, messages) if parsed is not None]


def changed(message: bytes, mutation: Mutation, place: int) -> bytes:
    match mutation.kind:
        case "flip":
            if place == len(message):
                return message
            flipped = message[place] ^ (1 << mutation.size % 8)
            return message[:place] + bytes([flipped]) + message[place + 1 :]
        case "cut":
            return message[:place] + message[place + mutation.size :]
        case "insert":
            return message[:place] + mutation.noise + message[place:]
        case _:
            return message[:place] + mutation.noise + message[place + len(mutation.noise) :]


def parsed_or_none(data: bytes) -> pb.StreamConfigResponse | None:
    try:
        return pb.StreamConfigResponse.FromString(data)
    except DecodeError:
        return None


async def hear_out(script: Script) -> None:
    """Say a mutated script to a node that serves something, and then something sound."""
    database = Database(revision=10**12)
    database.put(*basics(), api_key(1))
    async with watching() as node:
        await until(lambda: node.watch.figures.is_connected)
        node.control_plane.say(*script)
        sound = sound_end(script, database)
        node.control_plane.say(*sound)
        await until(lambda: has_answered(node, sound) or has_closed(node))
        assert is_running()
        assert len(node.watch.holdings.resources) <= MAX_RESOURCES
        if node.current.latest is not None:
            assert holds_together(node)


def sound_end(script: Script, database: Database) -> Script:
    """Return a transfer that any node must take, whatever it heard before: of an epoch of its own."""
    database.epoch = "t~" + max(
        (message.transfer_begin.to.config_epoch for message in script), default=""
    )
    database.transfers = iter([2**62])
    return database.full(force=True)


def has_answered(node: Watching, sound: Script) -> bool:
    return node.watch.holdings.position.config_epoch == sound[0].transfer_begin.to.config_epoch


def has_closed(node: Watching) -> bool:
    return not node.watch.figures.is_connected or node.watch.figures.reconnects_total > 0


def is_running() -> bool:
    """Say whether the task that follows the control plane is alive."""
    coroutines = [task.get_coro() for task in asyncio.all_tasks() if not task.done()]
    return any(getattr(each, "__qualname__", "") == "Watch.run" for each in coroutines)


def holds_together(node: Watching) -> bool:
    """Say whether what is in force is what its digest says, computed by the reference."""
    holdings, reference = node.watch.holdings, ReferenceNode()
    database = Database(holdings.position.config_epoch, holdings.position.revision)
    for (kind, resource_id), each in holdings.resources.items():
        resource = pb.TransferChunk().resources.add(
            kind=kind,
            id=resource_id,
            revision=each.revision,
            payload=each.payload,
        )
        database.resources[kind, resource_id] = resource
    reference.place = place_of(database.position)
    return reference.place[2] == holdings.position.digest


@given(SCRIPT_NAMES, st.lists(MUTATIONS, min_size=1, max_size=4))
@settings(max_examples=60, deadline=None)
def test_whatever_a_control_plane_says_a_node_goes_on(name: str, mutations: list[Mutation]) -> None:
    asyncio.run(hear_out(mutated(SCRIPTS[name](), mutations)))


@pytest.mark.long
@given(SCRIPT_NAMES, st.lists(MUTATIONS, min_size=1, max_size=8))
@settings(max_examples=3_000, deadline=None)
def test_whatever_a_control_plane_says_for_long_a_node_goes_on(
    name: str, mutations: list[Mutation]
) -> None:
    asyncio.run(hear_out(mutated(SCRIPTS[name](), mutations)))
