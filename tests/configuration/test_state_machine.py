"""Whatever happens to databases, control planes, nodes, disks and the network, in any order."""

import asyncio
import tempfile
import traceback
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any, NoReturn

import pytest
import structlog
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)
from structlog.typing import EventDict

from tests.configuration.machine import World
from tests.configuration.machine_convergence import converge

INDEX = st.integers(0, 7)
BYTES = st.integers(1, 20_000)
COMMON = ("organization", "user", "key", "price", "tier", "limits", "rule", "credential")
ADDED = (*COMMON, "device", "router")
CHANGED = (*COMMON, "suspension", "service")
REMOVED = ("price", "tier", "limits", "rule", "credential")


def step(
    **chosen: st.SearchStrategy[Any],
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Make a rule that is told of in failures: what depends on time fails once, and is not found again by trying."""

    def decorated(function: Callable[..., None]) -> Callable[..., None]:
        @wraps(function)
        def told(machine: "ConfigurationMachine", **values: object) -> None:
            said = ", ".join(f"{name}={value!r}" for name, value in values.items())
            machine.steps.append(f"machine.{function.__name__}({said})")
            function(machine, **values)

        return rule(**chosen)(told)  # type: ignore[call-overload, no-any-return] # strategies only

    return decorated


class ConfigurationMachine(RuleBasedStateMachine):
    """Does one thing after the other; indexes choose among what there is."""

    def __init__(self, runner: asyncio.Runner, template: Path, faults: list[str]) -> None:
        super().__init__()
        faults.clear()
        self.steps: list[str] = []
        self._runner = runner
        self._folder = tempfile.TemporaryDirectory(prefix="machine-")
        self.world = World(Path(self._folder.name), template, faults)

    def do(self, work: Coroutine[Any, Any, object]) -> None:
        """Do something, and give the planes a moment."""

        async def done() -> None:
            await work
            await asyncio.sleep(0.002)  # a few turns of the loop, so that things happen in between

        self._runner.run(done())

    def everybody_has_what_is_newest(self) -> None:
        with self.telling():
            self.do(converge(self.world))

    @contextmanager
    def telling(self) -> Iterator[None]:
        """Say with a failure what led to it."""
        try:
            yield
        except AssertionError as error:
            raise AssertionError("\n".join((str(error), *self.steps))) from error

    @initialize()
    def begin(self) -> None:
        self.do(self.world.open())

    def teardown(self) -> None:
        try:
            self.everybody_has_what_is_newest()
        finally:
            self.do(self.world.close())
            self._folder.cleanup()

    @invariant()
    def nothing_is_in_force_that_must_not_be(self) -> None:
        with self.telling():
            self.world.truths.check(self.world.hosts)

    # ── Administrators ───────────────────────────────────────────────────────────────────────

    @step(what=st.sampled_from(ADDED), index=INDEX)
    def add(self, what: str, index: int) -> None:
        self.do(self.world.write(lambda tx: self.world.rows.add(tx, what, index)))

    @step(what=st.sampled_from(CHANGED), index=INDEX)
    def change(self, what: str, index: int) -> None:
        self.do(self.world.write(lambda tx: self.world.rows.change(tx, what, index)))

    @step(what=st.sampled_from(REMOVED), index=INDEX)
    def remove(self, what: str, index: int) -> None:
        self.do(self.world.write(lambda tx: self.world.rows.remove(tx, what, index)))

    @step(index=INDEX)
    def add_many(self, index: int) -> None:
        self.do(self.world.write(lambda tx: self.world.rows.add_many(tx, index)))

    @step(index=INDEX)
    def delete_many(self, index: int) -> None:
        self.do(self.world.delete_many(index))

    @step(kind=st.sampled_from(("key", "device", "user", "organization")), index=INDEX)
    def revoke(self, kind: str, index: int) -> None:
        self.do(self.world.revoke(kind, index))

    @step(what=st.sampled_from(("key", "device", "price")), index=INDEX)
    def poison_leaf(self, what: str, index: int) -> None:
        self.do(self.world.write(lambda tx: self.world.rows.poison_leaf(tx, what, index)))

    @step(index=INDEX, is_published=st.booleans())
    def poison(self, index: int, is_published: bool) -> None:
        rows = self.world.rows
        poison = rows.poison_structure if is_published else rows.dangle
        self.do(self.world.write(lambda tx: poison(tx, index)))

    @step()
    def heal(self) -> None:
        self.do(self.world.write(self.world.rows.heal))

    @step()
    def eight_days_pass(self) -> None:
        self.do(self.world.forget())

    # ── The network ──────────────────────────────────────────────────────────────────────────

    @step(node=INDEX)
    def cut(self, node: int) -> None:
        self.world.hosts[node % 3].proxy.cut()

    @step(node=INDEX, count=BYTES)
    def cut_after(self, node: int, count: int) -> None:
        self.world.hosts[node % 3].proxy.cut_after_bytes = count

    @step(node=INDEX)
    def stand_still(self, node: int) -> None:
        self.world.hosts[node % 3].proxy.stand_still()

    @step(node=INDEX)
    def separate(self, node: int) -> None:
        proxy = self.world.hosts[node % 3].proxy
        proxy.point_at(None)
        proxy.cut()

    @step(node=INDEX)
    def reconnect(self, node: int) -> None:
        self.world.reconnect(self.world.hosts[node % 3])

    @step(ms=st.sampled_from((20, 100, 400)))
    def time_passes(self, ms: int) -> None:
        self.do(asyncio.sleep(ms / 1000))  # what is tested is that time passes

    # ── The planes ───────────────────────────────────────────────────────────────────────────

    @step(is_kill=st.booleans())
    def the_control_plane_ends(self, is_kill: bool) -> None:
        self.do(self.world.end_service(is_kill=is_kill))

    @step()
    def a_control_plane_starts(self) -> None:
        self.do(self.world.start_service())

    @step()
    def back_up(self) -> None:
        self.world.back_up()

    @step(index=INDEX)
    def restore(self, index: int) -> None:
        self.do(self.world.restore(index))

    @step(node=INDEX, is_kill=st.booleans())
    def a_node_ends(self, node: int, is_kill: bool) -> None:
        host = self.world.host(node, is_alive=True)
        if host is not None:
            self.do(host.kill() if is_kill else host.stop())

    @step(node=INDEX)
    def a_node_starts(self, node: int) -> None:
        host = self.world.host(node, is_alive=False)
        if host is not None:
            self.do(host.start())

    @step(node=INDEX, file=INDEX, at=BYTES, is_cut=st.booleans(), is_away=st.booleans())
    def a_node_comes_back_to_a_damaged_disk(
        self, node: int, file: int, at: int, is_cut: bool, is_away: bool
    ) -> None:
        host = self.world.hosts[node % 3]
        if host.life is not None:
            self.do(host.kill())
        if is_away:
            self.separate(node=node)
        self.world.damage(host, file, at, is_cut=is_cut)
        self.do(host.start())

    @step()
    def everybody_catches_up(self) -> None:
        self.everybody_has_what_is_newest()


@pytest.fixture
def faults() -> Iterator[list[str]]:
    """What the product itself calls a fault of its own, by logging where it came from; nothing else is said."""
    found: list[str] = []

    def listen(_logger: object, _level: str, entry: EventDict) -> NoReturn:
        if entry.get("exc_info"):
            found.append(f"{entry['event']}: {traceback.format_exc()}")
        raise structlog.DropEvent

    before = structlog.get_config()
    structlog.configure(processors=[listen], cache_logger_on_first_use=False)
    yield found
    structlog.configure(**before)


@pytest.mark.parametrize(
    ("examples", "steps"),
    [
        pytest.param(6, 20, id="short"),
        pytest.param(150, 50, id="long", marks=pytest.mark.long),
    ],
)
def test_nodes_are_never_wrong_and_always_catch_up(
    examples: int, steps: int, sqlite_template: Path, faults: list[str]
) -> None:
    with asyncio.Runner() as runner:

        def machine() -> ConfigurationMachine:
            return ConfigurationMachine(runner, sqlite_template, faults)

        run_state_machine_as_test(
            machine,  # type: ignore[arg-type] # what makes one is enough
            settings=settings(
                max_examples=examples,
                stateful_step_count=steps,
                deadline=None,
                database=None,
                suppress_health_check=list(HealthCheck),
            ),
        )
