"""Which part of a configuration, of the ledger and of a reporter one bucket's maintainer sees."""

from typing import Any

import msgspec
import pytest

from dataplane.domain.counters import CounterKind, CounterName, SubjectName
from dataplane.domain.limiting import SubjectKind, Unit, Window
from dataplane.domain.principals import Device, DeviceStatus, SubjectLimits
from dataplane.limits.buckets import BUCKETS, SHARED_TAG, bucket_tag, hash_tag_in
from dataplane.limits.cluster import slot_of
from dataplane.limits.counters import Keyspace
from dataplane.maintenance.share_reporter import Pauses, ShareReporter
from dataplane.maintenance.shares import Share, ShareLedger, nobodys_share, shares_of
from tests.control.usage_events import usage_event
from tests.maintenance.book import Book
from tests.maintenance.nodes import caller, entry, snapshot_of
from tests.maintenance.post import Post
from tests.topologies.spread import ACME, BOND

LIMIT = SubjectLimits((entry(Unit.REQUESTS, Window.DAY, 5),))
SNAPSHOT = snapshot_of(
    caller("u_a", ACME),
    caller("u_b", BOND),
    limits={
        f"organization:{ACME}": LIMIT,
        "user:u_b": LIMIT,
        "key:k_u_a": LIMIT,
        "user:gone": LIMIT,
        "model:gpt-4.1": LIMIT,
        "global": LIMIT,
    },
)
KINDS = [
    CounterKind(kind, Unit.REQUESTS, Window.DAY)
    for kind in (SubjectKind.GLOBAL, SubjectKind.ORGANIZATION, SubjectKind.USER)
]
DAY = "20261121"


def name(kind: SubjectKind, subject_id: str) -> CounterName:
    return CounterName(kind, subject_id, Unit.REQUESTS, Window.DAY, DAY)


ACME_ITSELF = name(SubjectKind.ORGANIZATION, ACME)
ITS_USER = name(SubjectKind.USER, "u_a")
ANOTHER_USER = name(SubjectKind.USER, "u_b")
EVERYBODY = name(SubjectKind.GLOBAL, "")


def subject(counter: CounterName) -> SubjectName:
    return SubjectName(counter.subject_kind, counter.subject_id)


def test_buckets_are_those_that_a_cluster_can_be_asked_for() -> None:
    # CLUSTER KEYSLOT 123456789 says 12739.
    assert bucket_tag("123456789") == f"b{12739 % BUCKETS}"
    assert slot_of("123456789") == 12739
    spent = name(SubjectKind.USER, "u{1}")
    assert hash_tag_in(Keyspace("b17").counter_key(spent)) == "b17"
    assert hash_tag_in("nothing") == ""


async def test_each_bucket_has_its_callers_and_what_is_configured_for_them() -> None:
    shares = await shares_of(SNAPSHOT)

    assert shares.keys() == {SHARED_TAG, bucket_tag(ACME), bucket_tag(BOND)}
    acme, bond = shares[bucket_tag(ACME)], shares[bucket_tag(BOND)]
    assert acme.snapshot.limits.keys() == {f"organization:{ACME}", "key:k_u_a"}
    assert bond.snapshot.limits.keys() == {"user:u_b"}
    assert [each.key_id for each in acme.snapshot.keys_by_sha256.values()] == ["k_u_a"]
    assert set(acme.subjects or ()) == {
        subject(ACME_ITSELF),
        subject(ITS_USER),
        SubjectName(SubjectKind.KEY, "k_u_a"),
    }
    assert shares[SHARED_TAG].snapshot is SNAPSHOT


async def test_devices_belong_to_the_bucket_of_whoever_calls_with_them() -> None:
    user = caller("u_a", ACME)
    devices = {
        b"d": Device("d", "d", DeviceStatus.APPROVED, user),
        b"p": Device("p", "p", DeviceStatus.PENDING_APPROVAL),
    }
    snapshot = snapshot_of()
    object.__setattr__(snapshot, "devices_by_sha256", devices)

    shares = await shares_of(snapshot)

    assert shares[bucket_tag(ACME)].snapshot.devices_by_sha256 == {b"d": devices[b"d"]}


async def test_plans_of_a_share_are_its_own() -> None:
    principal = next(iter(SNAPSHOT.keys_by_sha256.values())).principal
    whole = SNAPSHOT.plan_for(principal, "", "", "", 0)
    share = (await shares_of(SNAPSHOT))[bucket_tag(ACME)]

    assert share.snapshot.plan_for(principal, "", "", "", 0) is not whole
    assert SNAPSHOT.plan_for(principal, "", "", "", 0) is whole


@pytest.fixture
def book() -> Book:
    book = Book()
    for counter in (ACME_ITSELF, ITS_USER, ANOTHER_USER, EVERYBODY):
        book.totals[counter] = 7
    return book


async def listed(share: Share, book: Book, *subjects: CounterName) -> set[CounterName]:
    ledger: Any = ShareLedger(book, lambda: share)
    named = [subject(each) for each in subjects]
    return {each.counter async for sums in ledger.list_sums(KINDS, [DAY], named) for each in sums}


async def test_a_bucket_is_told_the_sums_of_its_subjects(book: Book) -> None:
    share = (await shares_of(SNAPSHOT))[bucket_tag(ACME)]

    assert await listed(share, book) == {ACME_ITSELF, ITS_USER}
    assert await listed(share, book, ITS_USER, ANOTHER_USER) == {ITS_USER}
    assert await listed(share, book, ANOTHER_USER, EVERYBODY) == set()


async def test_the_shared_tag_is_told_the_sums_of_what_is_shared(book: Book) -> None:
    share = (await shares_of(SNAPSHOT))[SHARED_TAG]

    assert await listed(share, book) == {EVERYBODY}
    assert await listed(share, book, EVERYBODY, ITS_USER) == {EVERYBODY}
    assert await listed(share, book, ITS_USER) == set()


async def test_a_bucket_without_callers_is_told_nothing(book: Book) -> None:
    assert await listed(nobodys_share(SNAPSHOT), book) == set()
    assert book.listed == []


def test_a_reporter_stands_still_until_no_tag_wants_it_any_more() -> None:
    post: Any = Post(Book())
    pauses = Pauses(post)
    one, other = (ShareReporter(pauses, tag, lambda _: True) for tag in ("b1", "b2"))

    one.pause()
    one.pause()
    other.pause()
    one.resume()
    assert post.is_paused

    other.resume()
    assert not post.is_paused


async def test_a_bucket_hands_over_the_records_of_its_organizations() -> None:
    post: Any = Post(Book())
    for request_id, organization_id in (("a", ACME), ("b", BOND)):
        event = usage_event(request=request_id)
        post.record(msgspec.structs.replace(event, organization_id=organization_id))
    reporter = ShareReporter(Pauses(post), "b", lambda event: event.organization_id == BOND)

    # At the moment of the call, not of the reading.
    batches = reporter.unacknowledged()
    post.deliver()

    assert [event.request_id async for events in batches for event in events] == ["b"]
