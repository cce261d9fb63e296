"""All counters that have a sum in the ledger, as Redis has them: found, read and set in batches."""

import asyncio
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from typing import Any, Final, NamedTuple, TypeVar  # Any: what the client library returns

from redis.exceptions import RedisError

from dataplane.domain.counters import CounterName, Reading
from dataplane.domain.limiting import LayerKind
from dataplane.domain.sums import latest_end_ms
from dataplane.limits.counters import counter_code, layer_kind
from dataplane.limits.operations import Answer
from dataplane.limits.upkeep import Correct, Raise
from dataplane.maintenance.ports import Desk
from dataplane.maintenance.terms import unfenced

# Counters that are compared at once: two milliseconds of the loop, and of the server.
BATCH: Final = 250
# Operations in one call of the script: a millisecond of the server.
OPERATIONS: Final = 64
T = TypeVar("T")


class Place(NamedTuple):
    """A counter and its key."""

    key: str
    counter: CounterName


def text_of(value: bytes | str) -> str:
    """Return what Redis answered as text: a name may hold anything."""
    return value if isinstance(value, str) else value.decode(errors="replace")


def parts_of(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """Yield `items` in parts of at most `size`."""
    return (items[start : start + size] for start in range(0, len(items), size))


class CounterTable:
    """The counters of periods and budgets under one hash tag."""

    def __init__(self, desk: Desk) -> None:
        """Use `desk`, which others may use as well."""
        self._desk = desk
        self._keyspace = desk.keyspace

    def place(self, counter: CounterName) -> Place:
        """Return a counter with its key."""
        return Place(self._keyspace.counter_key(counter), counter)

    async def has_reaped(self) -> bool:
        """Return whether requests are listed that were reaped and are not accounted for yet.

        Raises:
            RedisError, OSError: Redis did not answer.
        """
        return bool(await self._desk.client.zcard(self._keyspace.reaped))

    async def scan(self) -> AsyncIterator[list[Place]]:
        """Yield every counter that exists throughout, at least once each, in batches.

        Raises:
            RedisError, OSError: Redis did not answer.
        """
        pattern = f"{self._keyspace.prefix}[{LayerKind.PERIOD}{LayerKind.SPEND}]:*"
        cursor, waiting = 0, []
        while True:
            cursor, keys = await self._desk.client.scan(cursor, pattern, BATCH)
            waiting += self._places(keys)
            if len(waiting) >= BATCH or not cursor:
                for part in parts_of(waiting, BATCH):
                    yield list(part)
                waiting = []
            if not cursor:
                return

    async def read(self, places: Sequence[Place]) -> list[Reading | None]:
        """Return what counters say, in their order; None of one that cannot be read.

        Those of requests and tokens are of one instant; each budget is of one.

        Raises:
            RedisError, OSError: Redis did not answer.
        """
        counts = [each.key for each in places if layer_kind(each.counter) is LayerKind.PERIOD]
        pipeline = self._desk.client.pipeline(transaction=False)
        if counts:
            pipeline.mget(counts)
        for each in places:
            if layer_kind(each.counter) is LayerKind.SPEND:
                pipeline.hmget(each.key, "s", "h", "a")
        answers = await pipeline.execute(raise_on_error=False)
        # The counts are one answer, of all or none: a node that is not theirs any more has none.
        if answers and isinstance(answers[0], Exception if counts else OSError):
            raise answers[0]
        of_counts = iter(answers.pop(0) if counts else ())
        of_budgets = iter(answers)
        return [
            _count(next(of_counts))
            if layer_kind(each.counter) is LayerKind.PERIOD
            else _budget(next(of_budgets))
            for each in places
        ]

    async def correct(self, corrections: Iterable[Correct | Raise]) -> list[Answer]:
        """Set counters; return the answers in order.

        Raises:
            FencedError: The caller's term is over.
            RedisError, OSError: Redis did not answer; any part may be done.
        """
        answers: list[Answer] = []
        for part in parts_of(list(corrections), OPERATIONS):
            answers += unfenced(await self._desk.run(*part))
            # A call that answers at once gives nobody else a turn.
            await asyncio.sleep(0)
        return answers

    def _places(self, keys: Iterable[bytes | str]) -> list[Place]:
        places = []
        for raw in keys:
            key = text_of(raw)
            counter = self._keyspace.parse_counter(key)
            if counter is not None:
                places.append(Place(key, counter))
        return places


def correction(
    place: Place, before: Reading, settled: int, held: int, fence: int, capacity: int = 0
) -> Correct:
    """Return the operation that sets a counter to `settled` and `held` if it still is `before`.

    Its key outlives its period wherever in the world that ends.
    """
    key, counter = place
    return Correct(
        key=key,
        code=counter_code(counter),
        settled_before=before.settled,
        settled=settled,
        held_before=before.held,
        held=held,
        ends_ms=latest_end_ms(counter.window, counter.period_id),
        fence=fence,
        capacity=capacity,
    )


def raising(
    place: Place, settled: int, fence: int, capacity: int = 0, *, counts_held: bool
) -> Raise:
    """Return the operation that raises a counter to `settled`, whatever it is by then.

    With `counts_held` a budget is left as it is when what it holds makes up for what it lacks.
    """
    key, counter = place
    return Raise(
        key=key,
        code=counter_code(counter),
        settled=settled,
        counts_held=counts_held,
        ends_ms=latest_end_ms(counter.window, counter.period_id),
        fence=fence,
        capacity=capacity,
    )


def _count(value: Any) -> Reading | None:
    if value is None:
        return Reading()
    try:
        return Reading(int(value))
    except ValueError:
        return None


def _budget(values: Any) -> Reading | None:
    if isinstance(values, RedisError):
        return None
    try:
        settled, held, told = (int(each or 0) for each in values)
    except ValueError:
        return None
    return Reading(settled, held, told)
