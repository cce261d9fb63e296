"""Revocations where counters are spread: their marks stand where the organization's counters are."""

import asyncio
from typing import Any

import pytest

from dataplane.domain.limiting import Demand, LayerPlan
from dataplane.limits.buckets import SHARED_TAG, bucket_tag
from dataplane.limits.counters import Keyspace
from dataplane.limits.marks import Overruled
from dataplane.limits.reservation import Reservation
from dataplane.limits.sharded import ShardedLimiter
from dataplane.limits.split_reservation import SplitReservation
from tests.limits.callers import at, caller_of, revoked, subjects_of
from tests.limits.probe import until
from tests.topologies.spread import ACME, BOND, CORP, Spread, plan_for

KINDS = {
    "both halves": plan_for(ACME),
    "what organizations share": plan_for(ACME, own=False),
    "the organization's own": plan_for(ACME, shared=()),
}


async def reserve(
    spread: Spread, plan: LayerPlan, organization: str = ACME, revision: int = 7, name: str = "a"
) -> Reservation | SplitReservation:
    """Reserve for an organization's key, let in by a configuration of this revision."""
    principal = caller_of(f"k_{organization}", f"u_{organization}", organization)
    return await spread.limiter.reserve(
        name, plan, Demand(1, 1), b"{}", position=at(revision), principal=principal
    )


def marks_at(spread: Spread, hash_tag: str) -> set[str]:
    prefix = Keyspace(hash_tag).mark("", "").removesuffix(":")
    found: Any = spread.client_of(hash_tag).keys(f"{prefix}*")
    return {key.decode().removeprefix(prefix) for key in found}


@pytest.mark.parametrize("place", range(3), ids=["credential", "user", "organization"])
@pytest.mark.parametrize("kind", KINDS)
async def test_who_was_revoked_is_refused_whatever_counts_the_call(
    spread: Spread, kind: str, place: int
) -> None:
    plan = KINDS[kind]
    subject = subjects_of(caller_of(f"k_{ACME}", f"u_{ACME}", ACME))[place]
    revocation = revoked(subject, 8, organization=ACME)
    before = await spread.balances(plan)

    spread.limiter.mark_revoked(revocation)
    await until(lambda: not spread.limiter.unwritten_marks)

    with pytest.raises(Overruled) as refused:
        await reserve(spread, plan)
    assert refused.value.revocation == revocation
    assert await spread.balances(plan) == before
    assert spread.leases(SHARED_TAG) == spread.leases(bucket_tag(ACME)) == set()
    (await reserve(spread, plan, revision=8)).release()
    (await reserve(spread, plan_for(BOND), BOND, name="b")).release()


async def test_a_mark_is_where_its_organization_is_counted_and_beside_what_is_shared(
    spread: Spread,
) -> None:
    # It has opened no bucket yet.
    limiter = await ShardedLimiter.connect(spread.target_of, timeout_seconds=1.0)
    for organization in (ACME, CORP, ACME):
        limiter.mark_revoked(revoked(("user", f"u_{organization}"), 8, organization=organization))
    limiter.mark_revoked(revoked(("device", "d_1"), 8, organization=""))
    # Of a control plane that does not say whose it was.
    limiter.mark_revoked(revoked(("key", "k_1"), 8, organization=""))
    await until(lambda: not limiter.unwritten_marks)
    await limiter.aclose(1.0)

    users = {f"user:u_{ACME}", f"user:u_{CORP}"}
    assert marks_at(spread, SHARED_TAG) == users | {"key:k_1"}
    assert marks_at(spread, bucket_tag(ACME)) == {f"user:u_{ACME}"}
    assert marks_at(spread, bucket_tag(CORP)) == {f"user:u_{CORP}"}
    assert marks_at(spread, bucket_tag(BOND)) == set()
    assert limiter.tags == {SHARED_TAG, bucket_tag(ACME), bucket_tag(CORP)}


async def test_a_limiter_that_closes_opens_no_more_buckets(on_one_server: Spread) -> None:
    limiter = await ShardedLimiter.connect(on_one_server.target_of, timeout_seconds=1.0)
    for number in range(200):
        organization = f"org_{number}"
        limiter.mark_revoked(revoked(("user", f"u_{number}"), 8, organization=organization))
    await until(lambda: len(limiter.tags) > 1)

    await limiter.aclose(1.0)
    limiter.mark_revoked(revoked(("user", "u_late"), 8, organization=ACME))

    assert len(limiter.tags) < 200
    assert "user:u_late" not in marks_at(on_one_server, SHARED_TAG)
    names = {task.get_name() for task in asyncio.all_tasks()}
    assert not names & {"limits-mark", "limits-open"}
