"""The control plane computes the digest that the contract defines."""

import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from controlplane.domain import digest

VECTORS = json.loads((Path(__file__).parent / "vectors" / "digest.json").read_text("utf-8"))


def added_up(resources: list[dict[str, Any]]) -> int:  # Any: JSON
    total = 0
    for each in resources:
        payload = bytes.fromhex(each["payload_hex"])
        hashed = digest.resource_hash(each["kind"], each["id"], each["revision"], payload)
        total = digest.with_resource(total, hashed)
    return total


@pytest.mark.parametrize("case", VECTORS["cases"], ids=lambda case: case["name"])
def test_the_digest_is_that_of_the_vectors(case: dict[str, Any]) -> None:
    assert digest.digest_bytes(added_up(case["resources"])).hex() == case["digest_hex"]


def test_resources_can_be_taken_out_again_in_any_order() -> None:
    resources = VECTORS["cases"][-1]["resources"][:4]

    for order in itertools.permutations(resources):
        total = added_up(resources)
        for each in order:
            total = digest.without_resource(total, added_up([each]))
        assert digest.digest_bytes(total) == bytes(32)
