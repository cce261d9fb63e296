"""What the ledger and the counters say of one user, and whether they say the same."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from tollkeeper.admin.v1 import usage_service_pb2, usage_service_pb2_grpc
from tollkeeper.usage.v1 import usage_service_pb2 as usage_pb

from dataplane.domain.counters import CounterName
from dataplane.domain.limiting import Unit, Window
from tests.crashes.stack import Customer, Stack


@dataclass(frozen=True, slots=True)
class Row:
    """A request in the ledger."""

    request_id: str
    node_id: str
    state: str
    tokens: int
    charged_nanousd: int
    reserved_nanousd: int
    usage_day: str

    @classmethod
    def of(cls, record: usage_pb.UsageRecord) -> "Row":
        """Return a record; one whose process died has used what it reserved, for all that is known."""
        state = usage_pb.UsageState.Name(record.state).removeprefix("USAGE_STATE_").lower()
        used = record.input_total_tokens + record.output_tokens
        return cls(
            record.request_id,
            record.node_id,
            state,
            record.reserved_tokens if state == "abandoned" else used,
            record.charged_nanousd,
            record.reserved_nanousd,
            record.usage_day,
        )


@dataclass(frozen=True, slots=True)
class Books:
    """Both at one time.

    Attributes:
        rows: The user's requests in the ledger.
        counters: What each calendar counter has counted and what it holds.
        in_flight: Requests that hold a slot.
    """

    rows: tuple[Row, ...] = ()
    counters: Mapping[CounterName, tuple[int, int]] = field(default_factory=dict)
    in_flight: int = 0

    @property
    def agree(self) -> bool:
        """Return whether every counter is what the ledger says, with nothing in flight."""
        return self.counters == self.ledger and not self.in_flight

    @property
    def ledger(self) -> dict[CounterName, tuple[int, int]]:
        """Return what the counters are if the rows are all there was, and nothing is in flight."""
        return {each: (_sum(self.rows, each), 0) for each in self.counters}

    @property
    def settled_nanousd(self) -> int:
        """Return what the budget has settled."""
        return sum(counted for name, (counted, _) in self.counters.items() if _is_budget(name))

    @property
    def held_nanousd(self) -> int:
        """Return what the budget holds."""
        return sum(held for name, (_, held) in self.counters.items() if _is_budget(name))

    def of_node(self, node_id: str) -> list[Row]:
        """Return the rows of requests that a node admitted."""
        return [row for row in self.rows if row.node_id == node_id]


async def read_books(stack: Stack, customer: Customer) -> Books:
    """Read what is said of a customer."""
    counters: dict[CounterName, tuple[int, int]] = {}
    in_flight = 0
    keys: list[str] = [
        key async for key in stack.redis.scan_iter(match=f"*:{customer.user_id}*", count=1_000)
    ]
    for key in keys:
        name = stack.keyspace.parse_counter(key)
        assert name is not None, key
        if name.unit is Unit.PARALLEL:
            in_flight += int(await stack.redis.zcard(key))
        elif name.unit is Unit.SPEND:
            settled, held = await stack.redis.hmget(key, ["s", "h"])
            counters[name] = int(settled or 0), int(held or 0)
        else:
            counters[name] = int(await stack.redis.get(key) or 0), 0
    return Books(await read_rows(stack, customer), counters, in_flight)


async def read_rows(stack: Stack, customer: Customer) -> tuple[Row, ...]:
    """Return a customer's requests in the ledger."""
    stub = usage_service_pb2_grpc.UsageServiceStub(stack.admin.channel)
    wanted = usage_service_pb2.RequestFilter(user=customer.user)
    found = await stub.ListRequests(
        usage_service_pb2.ListRequestsRequest(filter=wanted, page_size=1_000)
    )
    assert not found.next_page_token
    return tuple(map(Row.of, found.requests))


def _sum(rows: Sequence[Row], name: CounterName) -> int:
    """Return what a counter has counted of `rows`."""
    is_day = name.window is Window.DAY
    mine = [
        row
        for row in rows
        if name.period_id == (row.usage_day if is_day else row.usage_day[:6])
        and row.state != "released"
    ]
    if name.unit is Unit.REQUESTS:
        return len(mine)
    if name.unit is Unit.TOKENS:
        return sum(row.tokens for row in mine)
    return sum(row.charged_nanousd for row in mine)


def _is_budget(name: CounterName) -> bool:
    return name.unit is Unit.SPEND
