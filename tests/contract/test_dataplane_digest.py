"""The data plane's digest against the vectors that both planes share."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataplane.domain.digest import digest_of, resource_hash

_VECTORS = json.loads((Path(__file__).parent / "vectors" / "digest.json").read_text("utf-8"))

_resources = st.lists(
    st.tuples(
        st.integers(0, 2**32 - 1), st.text(max_size=8), st.integers(0, 2**63 - 1), st.binary()
    ),
    max_size=8,
)


@pytest.mark.parametrize("case", _VECTORS["cases"], ids=lambda case: case["name"])
def test_the_data_plane_computes_the_digest_of_the_contract(case: dict[str, Any]) -> None:
    hashes = [
        resource_hash(
            each["kind"], each["id"], each["revision"], bytes.fromhex(each["payload_hex"])
        )
        for each in case["resources"]
    ]
    assert digest_of(hashes).hex() == case["digest_hex"]


@given(resources=_resources, seed=st.randoms())
def test_the_order_of_resources_does_not_change_the_digest(resources: Any, seed: Any) -> None:
    hashes = [resource_hash(*each) for each in resources]
    shuffled = list(hashes)
    seed.shuffle(shuffled)
    assert digest_of(shuffled) == digest_of(hashes)
