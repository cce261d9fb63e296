"""A change compiled into what was there gives what compiling everything would give."""

import asyncio
from collections.abc import Awaitable, Mapping, Sequence
from typing import TypeVar

from hypothesis import given, settings
from hypothesis import strategies as st

from dataplane.control.compile import Compiled, Compiler, InvalidConfigurationError
from dataplane.control.holdings import Change, Holdings, Key
from dataplane.control.raw_resources import RawResource, RawSecret
from tests.control.changing import (
    Step,
    crowding_steps,
    described,
    raw_of,
    secret_of,
    start,
    steps,
)
from tests.control.large import change_of, compiled_at_once

K = TypeVar("K")
V = TypeVar("V")


class Node:
    """Holds a configuration, compiles changes of it, and compares."""

    def __init__(self) -> None:
        self.holdings = Holdings()
        self.compiler = Compiler()
        self.revision = 0

    async def take(self, step: Step) -> None:
        """Compile a step both ways, and put it in force unless both refuse it."""
        self.revision += 1
        resources, secrets = self._after(step)
        change = self._change(resources, secrets, step.is_full)
        now_ms = 1_000 + self.revision
        expected, problems = await _outcome(compiled_at_once(resources, secrets, now_ms))
        found, told = await _outcome(self.compiler.compile(self.holdings, change, now_ms))
        assert set(told) == set(problems)
        if expected is None or found is None:
            return
        # Of compiling at once nothing else is new than the revision.
        plain, at_once = described(found), described(expected)
        del plain["position"], at_once["position"]
        assert plain == at_once
        self.holdings.commit(change)
        self.compiler.commit(found)

    def _after(self, step: Step) -> tuple[dict[Key, RawResource], dict[str, RawSecret]]:
        resources, secrets = dict(self.holdings.resources), dict(self.holdings.secrets)
        for key, payload in step.resources:
            resources.pop(key, None)
            if payload is not None:
                resources[key] = raw_of(key, payload, self.revision)
        for credential_id, sent in step.secrets.items():
            secrets.pop(credential_id, None)
            if sent is not None:
                secrets[credential_id] = secret_of(credential_id, *sent)
        return resources, secrets

    def _change(
        self, resources: Mapping[Key, RawResource], secrets: Mapping[str, RawSecret], is_full: bool
    ) -> Change:
        old, old_secrets = self.holdings.resources, self.holdings.secrets
        return change_of(
            resources if is_full else _new(old, resources),
            old.keys() - resources.keys(),
            secrets if is_full else _new(old_secrets, secrets),
            old_secrets.keys() - secrets.keys(),
            revision=self.revision,
            is_everything=is_full,
        )


def _new(old: Mapping[K, V], new: Mapping[K, V]) -> dict[K, V]:
    return {key: each for key, each in new.items() if old.get(key) != each}


async def _outcome(compiling: Awaitable[Compiled]) -> tuple[Compiled | None, tuple[str, ...]]:
    try:
        return await compiling, ()
    except InvalidConfigurationError as error:
        return None, error.problems


async def _taken(changes: Sequence[Step]) -> None:
    node = Node()
    await node.take(Step(tuple(start().items()), {"c1": (1, b"s")}, is_full=True))
    assert node.holdings.resources
    for step in changes:
        await node.take(step)


@given(st.lists(steps, max_size=12))
@settings(max_examples=80, deadline=None)
def test_any_changes_one_by_one_give_what_all_of_them_at_once_give(changes: list[Step]) -> None:
    asyncio.run(_taken(changes))


@given(st.lists(crowding_steps, max_size=12))
@settings(max_examples=60, deadline=None)
def test_callers_are_crowded_out_and_come_back_as_if_all_were_compiled_at_once(
    changes: list[Step],
) -> None:
    asyncio.run(_taken(changes))
