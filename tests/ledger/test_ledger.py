"""What nodes report stands in the ledger once, whoever says it how often."""

import asyncio
import random
import uuid
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
import grpc.aio
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from tollkeeper.admin.v1 import usage_service_pb2 as admin_pb
from tollkeeper.common.v1 import rates_pb2
from tollkeeper.usage.v1 import usage_service_pb2 as pb

from controlplane.rpc.usage_records import record_from_row, row_from_record
from controlplane.store.ledger import LEDGER
from controlplane.store.tables import UsageRow
from tests.ledger.conftest import LedgerServer

BEGIN = datetime(2026, 11, 21, 12, tzinfo=UTC)


def timestamp(instant: datetime) -> Timestamp:
    made = Timestamp()
    made.FromDatetime(instant)
    return made


def request_id(number: int) -> str:
    return str(uuid.UUID(int=0x0192_0000_0000_7000_8000_0000_0000_0000 + number))


def record(number: int = 1, **values: Any) -> pb.UsageRecord:  # Any: fields of the record
    given: dict[str, Any] = {
        "request_id": request_id(number),
        "state": pb.USAGE_STATE_SETTLED,
        "started_at": timestamp(BEGIN + timedelta(seconds=number)),
        "organization": "acme",
        "user": "acme/alice",
        "model": "gpt-4o-mini",
        "usage_day": "20261121",
        "usage_month": "202611",
        "service_day": "20261121",
        "input_total_tokens": 10,
        "output_tokens": 5,
        "cost_nanousd": 1_000,
        "charged_nanousd": 900,
    }
    return pb.UsageRecord(**(given | values))


def tried(**values: list[Any]) -> pb.TriedLayers:  # Any: items of a column
    """Return what one layer said, or as many as have names."""
    count = len(values.get("names", ["x"]))
    columns: dict[str, Any] = {"names": ["x"], "shadow": [], "soft": []}  # Any: as above
    columns |= {name: [1] * count for name in ("capacities", "reserved", "remaining")}
    return pb.TriedLayers(**columns | values)


async def report(ledger: LedgerServer, *batches: Sequence[pb.UsageRecord]) -> list[int]:
    """Send batches on one stream; return the acknowledged ids in their order."""

    async def requests() -> AsyncIterator[pb.ReportUsageRequest]:
        for batch_id, records in enumerate(batches, start=1):
            yield pb.ReportUsageRequest(batch_id=batch_id, node_id="node-1", records=records)

    async with asyncio.timeout(20):
        return [answer.batch_id async for answer in ledger.node.ReportUsage(requests())]


async def listed(ledger: LedgerServer, **question: Any) -> admin_pb.ListRequestsResponse:
    answer = await ledger.admin.ListRequests(admin_pb.ListRequestsRequest(**question), timeout=5)
    assert isinstance(answer, admin_pb.ListRequestsResponse)
    return answer


async def summed(ledger: LedgerServer, **question: Any) -> list[admin_pb.UsageSum]:
    answer = await ledger.admin.SumRequests(admin_pb.SumRequestsRequest(**question), timeout=5)
    return list(answer.sums)


def test_the_ledger_has_the_fields_of_the_contract() -> None:
    assert {column.name for column in LEDGER.columns} == set(
        pb.UsageRecord.DESCRIPTOR.fields_by_name
    )


def test_a_record_survives_its_row() -> None:
    full = record(
        generations=[pb.CountedGeneration(layer="user_requests_per_day", reset_generation=2)],
        client_request_id="mine",
        dialect=1,
        source=pb.USAGE_SOURCE_REPORTED,
        is_failover=True,
        duration_ms=1_234,
        rates=rates_pb2.Rates(
            input_nanousd_per_million=150_000_000, cache_read_nanousd_per_million=0
        ),
        address_subjects=["00ff00ff00ff00ff", "free-00ff00ff00ff00ff"],
        layers=pb.TriedLayers(
            names=["user_requests_per_day", "key_spend_total"],
            capacities=[9, 2**53],
            reserved=[1, 0],
            remaining=[8, 2**53],
            shadow=[1],
            soft=[1],
        ),
        is_degraded=True,
        output_cap_tokens=4_096,
    )

    assert record_from_row(UsageRow(**row_from_record(full))) == full


def test_the_rates_of_a_free_model_are_not_those_of_an_unknown_one() -> None:
    free = record(rates=rates_pb2.Rates())

    assert record_from_row(UsageRow(**row_from_record(free))).HasField("rates")
    assert not record_from_row(UsageRow(**row_from_record(record()))).HasField("rates")


async def test_the_layers_of_a_request_are_shown_to_who_asks_for_it(ledger: LedgerServer) -> None:
    tried = pb.TriedLayers(
        names=["user_requests_per_day"], capacities=[9], reserved=[1], remaining=[8]
    )
    full = record(layers=tried, rates=rates_pb2.Rates(request_nanousd=7), is_degraded=True)
    await report(ledger, [full])

    of_all = await listed(ledger)
    asked_for = await listed(ledger, filter=admin_pb.RequestFilter(request_id=full.request_id))

    assert list(asked_for.requests) == [full]
    assert not of_all.requests[0].HasField("layers")
    assert of_all.requests[0].rates == full.rates


async def test_batches_are_acknowledged_in_order_and_can_be_read_back(
    ledger: LedgerServer,
) -> None:
    acknowledged = await report(ledger, [record(1), record(2)], [], [record(3)])
    answer = await listed(ledger)

    assert acknowledged == [1, 2, 3]
    assert list(answer.requests) == [record(3), record(2), record(1)]
    assert answer.next_page_token == ""


async def test_a_repetition_changes_nothing(ledger: LedgerServer) -> None:
    await report(ledger, [record(cost_nanousd=1)])

    await report(ledger, [record(cost_nanousd=2), record(cost_nanousd=3)], [record()])

    assert [each.cost_nanousd for each in (await listed(ledger)).requests] == [1]


@pytest.mark.parametrize(
    ("first", "then", "stands"),
    [
        (pb.USAGE_STATE_ABANDONED, pb.USAGE_STATE_SETTLED, pb.USAGE_STATE_SETTLED),
        (pb.USAGE_STATE_ABANDONED, pb.USAGE_STATE_RELEASED, pb.USAGE_STATE_RELEASED),
        (pb.USAGE_STATE_ABANDONED, pb.USAGE_STATE_ABANDONED, pb.USAGE_STATE_ABANDONED),
        (pb.USAGE_STATE_SETTLED, pb.USAGE_STATE_ABANDONED, pb.USAGE_STATE_SETTLED),
        (pb.USAGE_STATE_SETTLED, pb.USAGE_STATE_RELEASED, pb.USAGE_STATE_SETTLED),
        (pb.USAGE_STATE_RELEASED, pb.USAGE_STATE_SETTLED, pb.USAGE_STATE_RELEASED),
        (pb.USAGE_STATE_RELEASED, pb.USAGE_STATE_ABANDONED, pb.USAGE_STATE_RELEASED),
    ],
)
async def test_only_what_was_taken_for_abandoned_is_ever_replaced(
    ledger: LedgerServer, first: int, then: int, stands: int
) -> None:
    await report(ledger, [record(state=first, output_tokens=1)])

    await report(ledger, [record(state=then, output_tokens=2)])

    (found,) = (await listed(ledger)).requests
    assert found.state == stands
    changed = first != stands
    assert found.output_tokens == (2 if changed else 1)


async def test_an_abandoned_request_is_settled_once(ledger: LedgerServer) -> None:
    await report(ledger, [record(state=pb.USAGE_STATE_ABANDONED, cost_nanousd=9)])

    await report(ledger, [record(cost_nanousd=4)], [record(cost_nanousd=5)])

    assert [each.cost_nanousd for each in (await listed(ledger)).requests] == [4]


async def test_nodes_that_race_with_the_same_records_give_exact_sums(
    ledger: LedgerServer,
) -> None:
    abandoned = [record(n, state=pb.USAGE_STATE_ABANDONED, cost_nanousd=7) for n in range(200)]
    settled = [record(n, cost_nanousd=3) for n in range(0, 200, 2)]

    def shuffled(records: list[pb.UsageRecord]) -> list[pb.UsageRecord]:
        return random.sample(records, len(records))

    await asyncio.gather(
        *(report(ledger, shuffled(abandoned), shuffled(settled)) for _ in range(4)),
        *(report(ledger, shuffled(settled), shuffled(abandoned)) for _ in range(4)),
    )

    (total,) = await summed(ledger)
    assert total.requests == 200
    assert total.cost_nanousd == 100 * 3 + 100 * 7


@pytest.mark.parametrize(
    "values",
    [
        {"request_id": ""},
        {"request_id": "NOT-A-UUID"},
        {"request_id": "{" + request_id(1) + "}"},
        {"state": pb.USAGE_STATE_UNSPECIFIED},
        {"state": 77},
        {"cost_nanousd": -1},
        {"charged_nanousd": 2**53 + 1},
        {"http_status": 1_000},
        {"attempts": -1},
        {"usage_day": "2026-11-21"},
        {"usage_month": "20261"},
        {"started_at": None},
        {"started_at": Timestamp(seconds=2**40)},
        {"started_at": Timestamp(seconds=1_800_000_000, nanos=-1)},
        {"generations": [pb.CountedGeneration(layer="x", reset_generation=-1)]},
        {"rates": rates_pb2.Rates(output_nanousd_per_million=-1)},
        {"rates": rates_pb2.Rates(cache_write_1h_nanousd_per_million=2**53 + 1)},
        {"address_subjects": list("abcde")},
        {"address_subjects": ["a", "a"]},
        {"address_subjects": [""]},
        {"address_subjects": ["x" * 101]},
        {"address_subjects": ["a\0b"]},
        {"layers": tried(names=[f"l{n}" for n in range(33)])},
        {"layers": tried(names=[""])},
        {"layers": tried(names=["x" * 101])},
        {"layers": tried(names=["a\0b"])},
        {"layers": tried(capacities=[-1])},
        {"layers": tried(reserved=[2**53 + 1])},
        {"layers": tried(remaining=[-1])},
        {"layers": tried(remaining=[])},
        {"layers": tried(capacities=[1, 2])},
        {"layers": pb.TriedLayers(reserved=[1])},
        {"layers": pb.TriedLayers(shadow=[0])},
        {"layers": tried(shadow=[1])},
        {"layers": tried(soft=[0, 0])},
        {"output_cap_tokens": -1},
    ],
    ids=repr,
)
async def test_a_record_that_makes_no_sense_ends_the_stream(
    ledger: LedgerServer, values: dict[str, Any]
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await report(ledger, [record(2)], [record(3), record(**values)])

    assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert [each.request_id for each in (await listed(ledger)).requests] == [request_id(2)]


async def test_a_batch_has_a_largest_size(ledger: LedgerServer) -> None:
    assert await report(ledger, [record(n) for n in range(500)]) == [1]

    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await report(ledger, [record(n) for n in range(501)])

    assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT


async def test_text_of_callers_is_made_storable_and_never_refused(ledger: LedgerServer) -> None:
    await report(
        ledger,
        [record(requested_model="m\0del" + "x" * 5_000, client_request_id="é" * 500)],
    )

    (found,) = (await listed(ledger)).requests
    assert found.requested_model.startswith("m\N{REPLACEMENT CHARACTER}del")
    assert len(found.requested_model) == 1_000
    assert found.client_request_id == "é" * 500


async def test_a_stream_without_reports_ends_at_once_when_the_control_plane_stops(
    ledger: LedgerServer,
) -> None:
    call = ledger.node.ReportUsage()
    await call.write(pb.ReportUsageRequest(batch_id=1, records=[record()]))
    await asyncio.wait_for(call.read(), 5)

    ledger.reports.close()

    with pytest.raises(grpc.aio.AioRpcError) as ended:
        await asyncio.wait_for(call.read(), 2)
    assert ended.value.code() == grpc.StatusCode.UNAVAILABLE


async def test_pages_show_every_request_once_while_new_ones_arrive(ledger: LedgerServer) -> None:
    same_time = timestamp(BEGIN)
    await report(ledger, [record(n, started_at=same_time) for n in range(25)])
    seen: list[str] = []
    token = ""

    for _ in range(5):
        page = await listed(ledger, page_size=7, page_token=token)
        seen += [each.request_id for each in page.requests]
        token = page.next_page_token
        await report(ledger, [record(100 + len(seen))])
        if not token:
            break

    assert seen == [request_id(n) for n in range(24, -1, -1)]


@pytest.mark.parametrize("token", ["?", "bm90IG91cnM=", "OTk5OTk5OTk5OTk5OTk5OTk5OTk5OmE="])
async def test_a_page_token_of_others_is_refused(ledger: LedgerServer, token: str) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await listed(ledger, page_token=token)

    assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT


async def test_requests_are_chosen_by_every_field_of_a_filter(ledger: LedgerServer) -> None:
    others = {"organization": "b", "user": "b/bob", "key": "b/bob/k", "model": "claude"}
    await report(
        ledger,
        [record(1, key="acme/alice/k"), *(record(n, **others) for n in range(2, 5))],
    )

    async def numbers(**chosen: Any) -> list[int]:
        found = (await listed(ledger, filter=admin_pb.RequestFilter(**chosen))).requests
        return [int(each.request_id[-4:], 16) for each in found]

    assert await numbers(organization="acme") == [1]
    assert await numbers(user="b/bob") == [4, 3, 2]
    assert await numbers(key="acme/alice/k") == [1]
    assert await numbers(model="claude") == [4, 3, 2]
    assert await numbers(request_id=request_id(3)) == [3]
    assert await numbers(since=timestamp(BEGIN + timedelta(seconds=3))) == [4, 3]
    assert await numbers(until=timestamp(BEGIN + timedelta(seconds=3))) == [2, 1]
    assert await numbers(organization="b", model="gpt-4o-mini") == []


@pytest.mark.parametrize(
    ("group_by", "field"),
    [
        (admin_pb.USAGE_GROUP_MODEL, "model"),
        (admin_pb.USAGE_GROUP_USER, "user"),
        (admin_pb.USAGE_GROUP_KEY, "key"),
        (admin_pb.USAGE_GROUP_DEVICE, "device_id"),
        (admin_pb.USAGE_GROUP_ORGANIZATION, "organization"),
        (admin_pb.USAGE_GROUP_DAY, "usage_day"),
    ],
)
async def test_sums_by_every_group_most_expensive_first(
    ledger: LedgerServer, group_by: int, field: str
) -> None:
    cheap, dear = {field: "20261120"}, {field: "20261121"}
    await report(
        ledger,
        [
            record(1, **cheap),
            record(2, **dear, cost_nanousd=2**53, cache_read_tokens=3),
            record(3, **dear, cost_nanousd=2**53),
            record(4, **cheap, state=pb.USAGE_STATE_RELEASED, cost_nanousd=0),
        ],
    )

    sums = await summed(ledger, group_by=group_by)

    assert sums == [
        admin_pb.UsageSum(
            group="20261121",
            requests=2,
            input_total_tokens=20,
            cache_read_tokens=3,
            output_tokens=10,
            cost_nanousd=2**54,
            charged_nanousd=1_800,
        ),
        admin_pb.UsageSum(
            group="20261120",
            requests=1,
            input_total_tokens=10,
            output_tokens=5,
            cost_nanousd=1_000,
            charged_nanousd=900,
        ),
    ]


async def test_an_empty_ledger_sums_to_zero(ledger: LedgerServer) -> None:
    assert await summed(ledger) == [admin_pb.UsageSum()]
    assert await summed(ledger, group_by=admin_pb.USAGE_GROUP_MODEL) == []
