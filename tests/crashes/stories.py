"""What happened to customers whose data plane was killed, told from before the crash to long after it."""

import asyncio
import contextlib
import functools
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tollkeeper.admin.v1.operations_service_pb2 import CounterVerification

from tests.crashes.books import Books, read_books
from tests.crashes.points import Point
from tests.crashes.stack import Customer, Node, Stack, stack_in
from tests.e2e.calls import Answer, Client, client_of

KEEPER: Final = "keeper"
# Some requests of what `_fill` asks for, beside the one that was charged what it reserved.
BUDGET_NANOUSD: Final = 2_500_000
_MANY: Final = 50
_LOOK_S: Final = 0.01
_PAUSE_S: Final = 0.05
_PATIENCE_S: Final = 15.0


@dataclass(frozen=True, slots=True)
class Plot:
    """A crash, the request that it happens to, and how that has to end.

    Attributes:
        point: Where the process dies.
        model: What the request asks for.
        is_stream: It asks for a stream.
        max_tokens: Its output cap.
        is_soft: Its budget is soft: it reserves what is expected, and tops up.
        is_held: The reservation is there when the process dies; else it is settled.
        is_sent: The provider has read the request by then.
        later: The state of its row one lease later; None: it has no row until its node is back.
        finally_: The state of its row when its node is back.
    """

    point: Point
    model: str = "mock-tokens-100-pace-2"
    is_stream: bool = True
    max_tokens: int | None = 200
    is_soft: bool = False
    is_held: bool = True
    is_sent: bool = True
    later: str | None = "abandoned"
    finally_: str = "abandoned"


@dataclass(slots=True)
class Story:
    """One customer's part.

    Attributes:
        exit_code: How the victim died; None when it lived on.
        answer: What the request that it died over got.
        upstream_calls: How many requests the provider had read of it by then.
        at_death: The books right after it.
        refusals: Why the customer was refused by another node, while the slot was taken.
        freed_after_s: When another node let the customer in again, seconds after the death.
        served: How many other requests were served to the end.
        later: The books when nothing was left to be reaped, with the victim still dead.
        restarted: The books when the victim was there again, and had nothing left to tell.
        filled: The books after as many requests as the budget had room for.
        last_refusal: Why there was no room for more.
        most_nanousd: The most that the budget was ever seen to have settled and held together.
    """

    plot: Plot
    customer: Customer
    victim: Node
    exit_code: int | None = None
    answer: Answer = field(default_factory=lambda: Answer(0, "", "", "", is_whole=False))
    upstream_calls: int = 0
    at_death: Books = field(default_factory=Books)
    refusals: list[str] = field(default_factory=list)
    freed_after_s: float = 0.0
    served: int = 0
    later: Books = field(default_factory=Books)
    restarted: Books = field(default_factory=Books)
    filled: Books = field(default_factory=Books)
    last_refusal: str = ""
    most_nanousd: int = 0


@dataclass(frozen=True, slots=True)
class Chronicle:
    """All stories, and the times that an administrator had all counters verified.

    `corrections` are the counters that were found to differ without him, and set right.
    """

    stories: Mapping[Point, Story]
    verified_later: CounterVerification
    verified_restarted: CounterVerification
    verified_filled: CounterVerification
    corrections: list[str]


async def live_through(plots: Sequence[Plot], folder: Path) -> Chronicle:
    """Kill a data plane for each of `plots`, side by side on one stack, and tell what followed."""
    async with stack_in(folder) as stack:
        customers = await asyncio.gather(
            *(stack.new_customer(BUDGET_NANOUSD, is_soft=plot.is_soft) for plot in plots)
        )
        keeper = await stack.start(KEEPER)
        await stack.until_maintained_by(KEEPER)
        victims = await asyncio.gather(
            *(stack.start(f"victim-{plot.point}", plot.point) for plot in plots)
        )
        stories = [Story(*each) for each in zip(plots, customers, victims, strict=True)]
        async with _watching(stack, stories):
            await asyncio.gather(*(_crash(stack, each, keeper) for each in stories))
            await _until_quiet(stack, stories, lambda plot: plot.later)
            for story in stories:
                story.later = await read_books(stack, story.customer)
            verified_later = await stack.verify()

            victims = await asyncio.gather(
                *(stack.restart(each.victim.node_id) for each in stories)
            )
            for story, victim in zip(stories, victims, strict=True):
                story.victim = victim
            await _until_quiet(stack, stories, lambda plot: plot.finally_)
            for story in stories:
                story.restarted = await read_books(stack, story.customer)
            verified_restarted = await stack.verify()

            await asyncio.gather(*(_fill(stack, each, keeper) for each in stories))
            await _until_quiet(stack, stories, lambda plot: plot.finally_)
            for story in stories:
                story.filled = await read_books(stack, story.customer)
            verified_filled = await stack.verify()
    return Chronicle(
        {each.plot.point: each for each in stories},
        verified_later,
        verified_restarted,
        verified_filled,
        keeper.corrections,
    )


async def _crash(stack: Stack, story: Story, keeper: Node) -> None:
    """Kill the victim over a request, and call another node until it lets the customer in again."""
    plot, provider = story.plot, story.customer.provider
    async with client_of(story.customer.api_key) as client:
        assert (await _small(client, keeper)).status == 200
        await stack.until(lambda: _is_free(stack, story.customer))
        calls = provider.stats.requests
        story.answer = await _answered(
            lambda: client.chat(
                story.victim.base_url,
                model=plot.model,
                stream=plot.is_stream,
                max_tokens=plot.max_tokens,
            )
        )
        story.exit_code = await story.victim.exit_code()
        assert story.exit_code is not None, (story.answer, story.victim.log[-4_000:])
        died_at = time.monotonic()
        story.at_death = await read_books(stack, story.customer)
        story.upstream_calls = provider.stats.requests - calls
        while (again := await _small(client, keeper)).status != 200:
            story.refusals.append(again.code)
            assert time.monotonic() < died_at + _PATIENCE_S, again
            await asyncio.sleep(_PAUSE_S)
        story.freed_after_s = time.monotonic() - died_at
        story.served = 2


async def _is_free(stack: Stack, customer: Customer) -> bool:
    """Return whether a slot is free: another process may still be about to say so."""
    return (await read_books(stack, customer)).in_flight == 0


async def _small(client: Client, node: Node) -> Answer:
    return await _answered(lambda: client.chat(node.base_url, model="mock-echo", max_tokens=16))


async def _answered(call: Callable[[], Awaitable[Answer]]) -> Answer:
    """Return how a call ended; one that nobody could count in time did not begin, and is repeated."""
    while (answer := await call()).code == "limits_unavailable":
        await asyncio.sleep(_PAUSE_S)
    return answer


async def _fill(stack: Stack, story: Story, keeper: Node) -> None:
    """Ask both nodes in turn until there is no room for what the next request reserves."""
    async with client_of(story.customer.api_key) as client:
        for number in range(_MANY):
            node = (keeper, story.victim)[number % 2]
            await stack.until(lambda: _is_free(stack, story.customer))
            answer = await _answered(
                functools.partial(
                    client.chat, node.base_url, model="mock-tokens-200", max_tokens=200
                )
            )
            if answer.status != 200:
                story.last_refusal = answer.code
                return
            story.served += 1


async def _until_quiet(
    stack: Stack, stories: Sequence[Story], state_of: Callable[[Plot], str | None]
) -> None:
    """Wait until nothing is in flight or to be reaped, and the ledger has all that it should have.

    What does not come true in time is for the tests to show.
    """

    async def is_quiet() -> bool:
        for listed in (stack.keyspace.leases, stack.keyspace.reaped):
            if await stack.redis.zcard(listed):
                return False
        for story in stories:
            books = await read_books(stack, story.customer)
            state = state_of(story.plot)
            states = Counter(row.state for row in books.of_node(story.victim.node_id))
            others = story.served + (state is not None) - len(books.rows)
            is_told = state is None or (books.agree and states[state] > 0)
            if others or not is_told:
                return False
        return True

    with contextlib.suppress(AssertionError):
        await stack.until(is_quiet, _PATIENCE_S)


@asynccontextmanager
async def _watching(stack: Stack, stories: Sequence[Story]) -> AsyncIterator[None]:
    """Look at every budget again and again, and note the most that it ever came to."""

    is_over = asyncio.Event()

    async def watch() -> None:
        while not is_over.is_set():
            for story in stories:
                most = await stack.spent_nanousd(story.customer)
                story.most_nanousd = max(story.most_nanousd, most)
            await asyncio.sleep(_LOOK_S)

    watcher = asyncio.create_task(watch())
    try:
        yield
    finally:
        is_over.set()
        await watcher
