"""What is framed by hand is what the generated classes read."""

from hypothesis import given
from hypothesis import strategies as st
from tollkeeper.config.v1 import config_service_pb2 as pb
from tollkeeper.config.v1 import resources_pb2

from controlplane.snapshots.encoding import (
    chunk_response,
    decoded,
    removed_entry,
    resource_entry,
    secret_entry,
)
from controlplane.snapshots.references import ResourceKey

KINDS = st.sampled_from([kind for kind in resources_pb2.ResourceKind.values() if kind])
RESOURCES = st.builds(
    resources_pb2.Resource,
    kind=KINDS,
    id=st.text(max_size=200),
    revision=st.integers(0, 2**63 - 1),
    payload=st.binary(max_size=40_000),
)
KEYS = st.builds(ResourceKey, KINDS, st.text(max_size=200))
SECRETS = st.builds(
    pb.SecretBundle,
    credential_id=st.text(max_size=80),
    version=st.integers(0, 2**40),
    sealed=st.binary(max_size=300),
)


@given(
    st.integers(1, 2**62),
    st.lists(RESOURCES, max_size=5),
    st.lists(KEYS, max_size=5),
    st.lists(SECRETS, max_size=5),
)
def test_a_chunk_of_joined_parts_is_the_message_that_holds_them(
    transfer_id: int,
    resources: list[resources_pb2.Resource],
    removed: list[ResourceKey],
    secrets: list[pb.SecretBundle],
) -> None:
    entries = [
        *map(removed_entry, removed),
        *map(resource_entry, resources),
        *map(secret_entry, secrets),
    ]

    read = pb.StreamConfigResponse.FromString(chunk_response(transfer_id, entries))

    expected = pb.TransferChunk(
        transfer_id=transfer_id,
        resources=resources,
        removed=[
            resources_pb2.ResourceRef(kind=each.kind, id=each.resource_id) for each in removed
        ],
        secrets=secrets,
    )
    assert read == pb.StreamConfigResponse(transfer_chunk=expected)


@given(RESOURCES)
def test_an_entry_is_read_back_as_it_was(resource: resources_pb2.Resource) -> None:
    assert decoded(resource_entry(resource)) == resource
