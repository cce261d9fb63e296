"""Servers that know where others are: asked until one of them answers.

One that hangs must not use up the time of whoever wants to connect, so the next one is asked after
10 ms, beside it. The first to answer is the first to be asked the next time.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar  # Any: what a server answers depends

from redis.exceptions import RedisError, ResponseError

from dataplane.limits.patience import Deadline
from dataplane.limits.target import FixedTarget, pool_of

# For each of them: limits page, section 11.
ASK_SECONDS: Final = 0.05
STAGGER_SECONDS: Final = 0.01
# How long an answer is kept. A connect that was cut off while it waited for it finds it there with
# the breaker's next probe, and hundreds of connections that are lost at once ask once.
KEPT_SECONDS: Final = 0.5
# After that whoever knows an older answer takes it: a connect has 50 ms in all.
PATIENCE_SECONDS: Final = 0.02
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Question(Generic[T]):
    """A command, and what reads its answer.

    `read` gets the answer, or the error that the server answered, and the host that was asked. It
    raises RedisError where that is no answer.
    """

    command: Sequence[str]
    read: Callable[[Any, str], T]


class Witnesses:
    """Some servers; connections are opened for each question.

    Attributes:
        urls: Of the servers, in the order in which they are asked; they may hold passwords.
    """

    def __init__(self, urls: Sequence[str]) -> None:
        """Begin with the order given."""
        self.urls = list(urls)

    def replace(self, urls: Sequence[str]) -> None:
        """Ask others from now on; whoever answered last is still asked first if it is among them."""
        first = [url for url in self.urls[:1] if url in urls]
        self.urls = list(dict.fromkeys([*first, *urls]))

    async def ask(self, question: Question[T]) -> T:
        """Return the first answer.

        Raises:
            RedisError, OSError: None of them has an answer; what the last one raised.
        """
        waiting = list(self.urls)
        asked: dict[asyncio.Task[T], str] = {}
        failure: BaseException = RedisError("there is nobody to ask")
        try:
            while waiting or asked:
                if waiting:
                    url = waiting.pop(0)
                    asked[asyncio.create_task(_ask(url, question))] = url
                patience = STAGGER_SECONDS if waiting else None
                done, _ = await asyncio.wait(
                    asked, timeout=patience, return_when=asyncio.FIRST_COMPLETED
                )
                failures = {task: task.exception() for task in done}
                for task, error in failures.items():
                    url = asked.pop(task)
                    if error is None:
                        self._prefer(url)
                        return task.result()
                    if not isinstance(error, RedisError | OSError):
                        raise error
                    failure = error
            raise failure
        finally:
            await _end(asked)

    def _prefer(self, url: str) -> None:
        if url in self.urls:
            self.urls.remove(url)
            self.urls.insert(0, url)


class Lookup(Generic[T]):
    """An answer that many want at once: asked for once, and kept for half a second.

    Whoever is cancelled while waiting leaves the question to the others, and to those after it.
    Where there is no answer in time the last one is as good as it was: what it says may be over, as
    may any answer a moment later.
    """

    def __init__(self, ask: Callable[[], Awaitable[T]]) -> None:
        """Prepare; `ask` ends in some time of its own and raises RedisError or OSError."""
        self._ask = ask
        self._question: asyncio.Task[T] | None = None
        self._answered_at = 0.0
        self._last: list[T] = []

    async def answer(self) -> T:
        """Return an answer that is at most half a second old, or the last one there was.

        Raises:
            RedisError, OSError: There never was one.
        """
        if self._question is None or self._is_over(self._question):
            self._question = asyncio.create_task(self._asked())
            self._question.add_done_callback(_retrieve)
        if not self._last:
            return await asyncio.shield(self._question)
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                return await asyncio.shield(self._question)
        except (RedisError, OSError):
            return self._last[-1]

    async def _asked(self) -> T:
        answer = await self._ask()
        self._answered_at = asyncio.get_running_loop().time()
        self._last = [answer]
        return answer

    def _is_over(self, question: asyncio.Task[T]) -> bool:
        if not question.done():
            return False
        if question.cancelled() or question.exception() is not None:
            return True
        return question.get_loop().time() > self._answered_at + KEPT_SECONDS


async def _ask(url: str, question: Question[T]) -> T:
    # The pool only builds the right kind of connection.
    link: Any = pool_of(FixedTarget(url), timeout_seconds=None).make_connection()  # type: ignore[no-untyped-call] # the library has no annotation here
    try:
        async with Deadline(ASK_SECONDS):
            await link.connect()
            await link.send_command(*question.command)
            try:
                answer = await link.read_response()
            except ResponseError as error:
                answer = error
    finally:
        # Without a wait: this may have been cancelled, and may be again.
        await link.disconnect(nowait=True)
    return question.read(answer, link.host)


async def _end(tasks: dict[asyncio.Task[Any], str]) -> None:
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks)


def _retrieve(question: asyncio.Task[Any]) -> None:
    """Look at a failure that everybody who waited for it was cancelled before."""
    if not question.cancelled():
        question.exception()
