"""With what devices were last seen, as nodes report it beside usage."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from tollkeeper.admin.v1 import usage_service_pb2 as admin_pb
from tollkeeper.usage.v1 import usage_service_pb2 as pb

from controlplane.domain.keys import sha256_of
from controlplane.store import sightings
from controlplane.store.database import Store
from controlplane.store.tables import Device, DeviceSighting, RevisionCounter
from tests.ledger.conftest import LedgerServer
from tests.ledger.test_ledger import record, timestamp

SEEN = datetime(2026, 11, 20, 12, tzinfo=UTC)
DEVICE, OTHER = "aaaaaaaaaaaa", "bbbbbbbbbbbb"


@pytest.fixture(autouse=True)
async def _devices(store: Store) -> None:
    """Two devices that the control plane knows."""
    async with store.transaction("ann", "x") as tx:
        for device_id in (DEVICE, OTHER):
            tx.add(
                Device(
                    id=device_id,
                    name="laptop",
                    token_sha256=sha256_of(device_id),
                    status=2,
                    created_at=tx.now,
                    updated_at=tx.now,
                )
            )


def sighting(device_id: str = DEVICE, after_s: int = 0, **values: Any) -> pb.DeviceSighting:
    given: dict[str, Any] = {
        "seen_at": timestamp(SEEN + timedelta(seconds=after_s)),
        "address": "203.0.113.7",
        "user_agent": "tollkeeper/1",
        "platform": "linux",
        "version": "1.2.3",
    }
    return pb.DeviceSighting(device_id=device_id, **(given | values))


async def see(
    ledger: LedgerServer, *batches: Sequence[pb.DeviceSighting], records: int = 0
) -> list[int]:
    """Report batches of sightings on one stream; return the acknowledged ids."""

    async def requests() -> AsyncIterator[pb.ReportUsageRequest]:
        for batch_id, seen in enumerate(batches, start=1):
            used = [record(n) for n in range(records)]
            yield pb.ReportUsageRequest(batch_id=batch_id, records=used, sightings=seen)

    async with asyncio.timeout(20):
        return [answer.batch_id async for answer in ledger.node.ReportUsage(requests())]


async def known(store: Store, *device_ids: str) -> dict[str, DeviceSighting]:
    async with store.reading() as session:
        return await sightings.of(session, device_ids or (DEVICE, OTHER))


async def test_the_last_sighting_of_a_device_is_kept_without_a_revision(
    ledger: LedgerServer, store: Store
) -> None:
    assert await see(ledger, [sighting(), sighting(OTHER, address="2001:db8::1")]) == [1]

    found = await known(store)

    assert set(found) == {DEVICE, OTHER}
    seen = found[DEVICE]
    assert seen.seen_at == SEEN
    assert (seen.address, seen.user_agent) == ("203.0.113.7", "tollkeeper/1")
    assert (seen.platform, seen.version) == ("linux", "1.2.3")
    assert set(await known(store, OTHER, "nobody")) == {OTHER}
    async with store.reading() as session:
        assert (await session.get_one(RevisionCounter, 1)).revision == 1


async def test_a_newer_sighting_wins_whatever_the_order_of_arrival(
    ledger: LedgerServer, store: Store
) -> None:
    await see(
        ledger,
        [sighting(after_s=5, version="5"), sighting(after_s=9, version="9")],
        [sighting(after_s=7, version="7")],
    )
    assert (await known(store))[DEVICE].version == "9"

    await see(ledger, [sighting(after_s=10, version="10")])
    assert (await known(store))[DEVICE].version == "10"


async def test_what_a_device_does_not_say_stays_as_it_was_known(
    ledger: LedgerServer, store: Store
) -> None:
    await see(ledger, [sighting()], [sighting(after_s=1, platform="", version="", user_agent="")])

    seen = (await known(store))[DEVICE]

    assert (seen.platform, seen.version, seen.user_agent) == ("linux", "1.2.3", "")
    assert seen.seen_at == SEEN + timedelta(seconds=1)


@pytest.mark.parametrize(
    "bad",
    [
        sighting("cccccccccccc"),
        sighting(""),
        sighting("x" * 200),
        sighting("aaaaaa\0aaaaaa"),
        sighting(DEVICE + "\0"),
        pb.DeviceSighting(device_id=DEVICE),
        sighting(seen_at=Timestamp(seconds=2**40)),
        sighting(seen_at=Timestamp(seconds=1, nanos=-1)),
    ],
    ids=repr,
)
async def test_a_sighting_that_cannot_be_kept_is_dropped_and_the_batch_stands(
    ledger: LedgerServer, store: Store, bad: pb.DeviceSighting
) -> None:
    assert await see(ledger, [bad, sighting(OTHER)], records=1) == [1]

    assert set(await known(store, DEVICE, OTHER, "cccccccccccc")) == {OTHER}
    listed = await ledger.admin.ListRequests(admin_pb.ListRequestsRequest(), timeout=5)
    assert len(listed.requests) == 1


async def test_text_of_a_device_is_made_storable(ledger: LedgerServer, store: Store) -> None:
    await see(
        ledger,
        [sighting(user_agent="a\0b" + "x" * 500, platform="p" * 65, version="é" * 99, address="")],
    )

    seen = (await known(store))[DEVICE]

    assert seen.user_agent == "ab" + "x" * 254
    assert (seen.platform, seen.version, seen.address) == ("p" * 64, "é" * 64, "")


async def test_a_node_whose_clock_is_ahead_does_not_keep_later_sightings_out(
    ledger: LedgerServer, store: Store
) -> None:
    now = store.clock()
    store.clock = lambda: now
    await see(ledger, [sighting(seen_at=timestamp(now + timedelta(days=300)), version="ahead")])
    assert (await known(store))[DEVICE].seen_at == now

    now += timedelta(seconds=1)
    await see(ledger, [sighting(seen_at=timestamp(now), version="true")])

    assert (await known(store))[DEVICE].version == "true"


async def test_sightings_of_a_refused_batch_are_not_kept(
    ledger: LedgerServer, store: Store
) -> None:
    call = ledger.node.ReportUsage()
    await call.write(
        pb.ReportUsageRequest(batch_id=1, records=[record(state=77)], sightings=[sighting()])
    )

    with pytest.raises(grpc.aio.AioRpcError):
        await asyncio.wait_for(call.read(), 5)

    assert await known(store) == {}


async def test_of_too_many_sightings_the_first_five_hundred_are_kept(
    ledger: LedgerServer, store: Store
) -> None:
    crowd = [sighting(f"stranger{n}") for n in range(499)]

    await see(ledger, [*crowd, sighting(), sighting(OTHER)])

    assert set(await known(store)) == {DEVICE}


async def test_nodes_that_race_with_sightings_leave_the_newest(store: Store) -> None:
    other = Store(store.engine.url)

    async def tell(control_plane: Store, second: int) -> None:
        at = SEEN + timedelta(seconds=second)
        rows = [
            {
                "device_id": device_id,
                "seen_at": at,
                "address": "",
                "user_agent": "",
                "platform": "",
                "version": str(second),
            }
            for device_id in ((DEVICE, OTHER) if second % 2 else (OTHER, DEVICE))
        ]
        async with control_plane.ledger() as session:
            await sightings.record(session, rows)

    async with asyncio.timeout(30):
        await asyncio.gather(*(tell((store, other)[n % 3 % 2], n) for n in range(40)))

    assert {seen.version for seen in (await known(store)).values()} == {"39"}
    await other.close()
