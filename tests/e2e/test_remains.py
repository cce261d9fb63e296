"""What is left when everything was killed: no process, and no secret in any file."""

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.e2e.calls import Streams, client_of
from tests.e2e.conftest import SETTINGS
from tests.e2e.customers import new_customer
from tests.e2e.leaks import ALLOWED, files_of, leaks
from tests.e2e.stack import GONE_DEADLINE_S, Secret, Stack
from tests.e2e.waiting import eventually

PROMPT = Secret("a prompt", "canary-prompt-the-quick-brown-fox-7d1f4e")
ANSWER = Secret("an answer", "lorem-ipsum-dolor")
PROVIDER_SECRET = "sk-canary-provider-0c9d6c1be2a94f50"


@dataclass(frozen=True, slots=True)
class Wreck:
    """A stack whose `dev` was killed, and what still ran five seconds later."""

    stack: Stack
    survivors: list[str]
    took_s: float


@pytest.fixture(scope="module")
def wreck(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Wreck]:
    """Use a stack for everything that might leave a secret behind, then kill its `dev`."""
    stack = Stack(tmp_path_factory.mktemp("wreck"), environ=SETTINGS)
    try:
        asyncio.run(use(stack))
        os.kill(stack.line["pids"]["dev"], signal.SIGKILL)
        killed_at = time.monotonic()
        stack.process.wait()
        with contextlib.suppress(AssertionError):  # the test says so
            eventually(lambda: not stack.processes(), GONE_DEADLINE_S)
        yield Wreck(stack, stack.processes(), time.monotonic() - killed_at)
    finally:
        stack.kill()


async def use(stack: Stack) -> None:
    """Create secrets of every kind, say the prompt in both dialects, and leave streams open."""
    customer = new_customer(stack)
    provider = "openai"
    stack.tollkeeper("provider", "create", provider, "--kind", "openai")
    stack.tollkeeper(
        "credential", "create", f"{provider}/main", "--secret-stdin", stdin=PROVIDER_SECRET
    )
    rule = ("rule", "create", "default", "--priority", "9", "--provider", provider)
    stack.tollkeeper(*rule, "--models", "gpt-*")
    async with client_of(customer.api_key) as client:
        for base_url in stack.base_urls:
            for model in ("mock-echo", "mock-cut-3", "mock-status-500", "mock-unheard-of"):
                for stream in (False, True):
                    await client.chat(base_url, model=model, content=PROMPT.text, stream=stream)
            # Refused ones must not be logged with what was presented.
            await client.chat(base_url, api_key=f"{customer.api_key}x", content=PROMPT.text)
        streams = Streams(client, stack.base_urls[0], "mock-tokens-500-pace-20", 3)
        await streams.all_started()
        stack.tollkeeper("key", "revoke", customer.key)
        os.kill(stack.controlplane_pid(), signal.SIGKILL)
        os.kill(stack.dataplane_pid(0), signal.SIGKILL)
        await streams.answers()
        # The dying line of the data plane, and its successor's start, are in the log too.
        eventually(lambda: stack.log.read_text(encoding="utf-8").count(" is back (pid ") == 2, 40)


def test_nothing_of_a_stack_runs_5_seconds_after_kill_9_of_dev(wreck: Wreck) -> None:
    assert wreck.survivors == []
    assert wreck.took_s <= GONE_DEADLINE_S


def test_no_secret_and_no_prompt_stands_in_any_log_database_dump_snapshot_or_spool(
    wreck: Wreck,
) -> None:
    names = [secret.name for secret in wreck.stack.secrets]
    assert set(ALLOWED) < set(names)
    assert len(names) == len(ALLOWED) + 2
    searched = " ".join(files_of(wreck.stack))
    # Otherwise the search would find nothing because it looks at nothing.
    for part in ("dev.log", "controlplane.sqlite", "appendonly.aof", "/snapshot", ".spool"):
        assert part in searched

    assert leaks(wreck.stack, PROMPT, ANSWER) == []


def test_the_search_finds_a_secret_in_the_files_where_it_may_stand(
    wreck: Wreck, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.e2e.leaks.ALLOWED", {})

    found = leaks(wreck.stack)

    wanted = {f"{name} stands in {where}" for name, places in ALLOWED.items() for where in places}
    assert set(found) == wanted
