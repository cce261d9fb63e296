"""Which revocation counts above which configuration."""

import pytest

from dataplane.domain.revocations import overrules


@pytest.mark.parametrize("kind", ["key", "device", "user", "organization"])
@pytest.mark.parametrize(
    ("mark", "snapshot", "counts"), [(6, 5, True), (5, 5, False), (4, 5, False)]
)
def test_in_one_epoch_the_newer_counts(kind: str, mark: int, snapshot: int, counts: bool) -> None:
    assert overrules(kind, "e1", mark, "e1", snapshot) is counts


@pytest.mark.parametrize("kind", ["key", "device"])
@pytest.mark.parametrize(("mark_epoch", "snapshot_epoch"), [("e1", "e2"), ("e2", "e1")])
def test_a_revoked_credential_never_comes_back_with_another_database(
    kind: str, mark_epoch: str, snapshot_epoch: str
) -> None:
    assert overrules(kind, mark_epoch, 1, snapshot_epoch, 1_000)


@pytest.mark.parametrize("kind", ["user", "organization"])
def test_who_was_deleted_may_be_restored_by_a_later_database_only(kind: str) -> None:
    assert not overrules(kind, "e1", 1_000, "e2", 1)
    assert overrules(kind, "e2", 1, "e1", 1_000)
