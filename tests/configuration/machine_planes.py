"""Both planes in one process, as often started and killed as a test wants; what is on their disks stays."""

import asyncio
import shutil
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from tollkeeper.config.v1 import config_service_pb2 as pb

from controlplane.snapshots.identity import Context, NodeIdentityClaim
from controlplane.store.database import Store
from controlplane.store.epochs import Epochs
from controlplane.store.position_marker import PositionMarker
from controlplane.tasks import running as running_beside
from dataplane.changes import Changes
from dataplane.control.compile import Compiler
from dataplane.control.current import CurrentSnapshot
from dataplane.control.hello import Node
from dataplane.control.holdings import Holdings
from dataplane.control.last_known_good import LastKnownGood
from dataplane.control.sealing import SealingKey
from dataplane.control.watch import Watch
from dataplane.domain.authentication import authenticate
from dataplane.domain.credentials import Credentials
from dataplane.domain.refusals import Refusal
from tests.configuration.contents import Caller
from tests.configuration.proxy import Proxy
from tests.distribution.conftest import ControlPlane, running

EVERYBODY: Final[frozenset[str]] = frozenset()
# Three of them without a word, and a node leaves: short, and long enough for a busy machine.
HEARTBEAT_S: Final = 0.5
REVOCATIONS: Final = "revocations"


@dataclass
class Clock:
    """The time of both planes: that of this machine, set forward by a test."""

    ahead: timedelta = timedelta()

    def now(self) -> datetime:
        """Return it."""
        return datetime.now(UTC) + self.ahead

    def now_ms(self) -> int:
        """Return it in Unix milliseconds."""
        return round(self.now().timestamp() * 1000)


class OnlyWhole(Node):
    """A node that cannot be told differences."""

    __slots__ = ()

    def hello(self, holdings: Holdings, sealing_key: SealingKey) -> pb.StreamConfigRequest:
        """Leave that capability out."""
        message = super().hello(holdings, sealing_key)
        message.hello.capabilities.remove(pb.CAPABILITY_DELTA)
        return message


@dataclass
class Service:
    """The control plane: one at a time on the database at `path`."""

    folder: Path
    clock: Clock
    scopes: dict[str, frozenset[str]]
    """By the token of the node."""
    running: ControlPlane | None = None
    _stack: AsyncExitStack = field(default_factory=AsyncExitStack)

    @property
    def path(self) -> Path:
        """Where the database is."""
        return self.folder / "controlplane.sqlite"

    async def start(self) -> None:
        """Start one as the program does."""
        store = Store(f"sqlite+aiosqlite:///{self.path}", clock=self.clock.now)
        self._stack.push_async_callback(store.close)
        epochs = Epochs(store, PositionMarker(self.folder), poll_s=0.1)
        await epochs.start()
        plane = await self._stack.enter_async_context(
            running(store, interval_s=HEARTBEAT_S, poll_s=0.2, identify=self._identify)
        )
        plane.fleet.on_position_ahead = lambda each: epochs.position_ahead(
            each.config_epoch, each.revision
        )
        await self._stack.enter_async_context(running_beside(epochs.run()))
        self.running = plane

    async def stop(self) -> None:
        """End it; nodes that still reach it hear a goodbye."""
        self.running = None
        await self._stack.aclose()

    def _identify(self, context: Context) -> NodeIdentityClaim:
        metadata = dict(context.invocation_metadata() or ())
        _, _, token = str(metadata["authorization"]).partition(" ")
        return NodeIdentityClaim(organization_ids=self.scopes[token])


class Observed(Changes):
    """Tells at once of everything that comes into force."""

    def __init__(self, observe: Callable[[], None]) -> None:
        """Call `observe` right after each assignment."""
        super().__init__()
        self._observe = observe

    def note(self) -> None:
        """Say that something changed."""
        super().note()
        self._observe()


class Life:
    """One run of a node's process."""

    def __init__(
        self,
        node: Node,
        address: str,
        folder: Path,
        clock: Clock,
        observe: Callable[["Life"], None],
    ) -> None:
        """Prepare; `observe` is called with everything that comes into force."""
        self.clock = clock
        self.must_hear = False
        """What was revoked is not known, and no control plane was heard yet."""
        self.applied_count = 0
        self.current = CurrentSnapshot()
        self.keeper = LastKnownGood(folder, b"n" * 32, clock.now_ms)

        def observed() -> None:
            self.applied_count += 1
            observe(self)

        self.watch = Watch(
            (address,),
            node,
            self.current,
            clock.now_ms,
            keeper=self.keeper,
            changes=Observed(observed),
            compiler=Compiler(),
        )
        self._task: asyncio.Task[None] | None = None

    @property
    def is_following(self) -> bool:
        """Say whether what comes into force is from a control plane; before that it is from the disk."""
        return self._task is not None

    async def start(self) -> None:
        """Load what an earlier life left, then follow."""
        await self.keeper.load(self.watch.restore)
        self._task = asyncio.create_task(self.watch.run())

    async def end(self) -> None:
        """Drop it."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self.keeper.aclose()

    def admits(self, caller: Caller) -> bool:
        """Return whether a request with this credential would be let in now."""
        device_id = caller.credential_id if caller.kind == "device" else ""
        try:
            authenticate(
                self.current.get(),
                Credentials(sha256=caller.sha256, device_id=device_id),
                self.clock.now_ms(),
            )
        except Refusal:
            return False
        return True


@dataclass
class Host:
    """A machine with a disk, on which a node lives one life after the other."""

    name: str
    folder: Path
    node: Callable[[], Node]
    scope: frozenset[str]
    proxy: Proxy
    clock: Clock
    observe: Callable[["Host", Life], None]
    life: Life | None = None
    is_journal_lost: bool = False
    """Its disk was damaged so that it cannot know any more what it refused."""
    _deaths: int = 0

    @property
    def disk(self) -> Path:
        """Where the present life keeps its files."""
        return self.folder / f"{self.name}-{self._deaths}"

    async def start(self) -> None:
        """Begin a life with what is on the disk."""
        life = Life(
            self.node(),
            self.proxy.address,
            self.disk,
            self.clock,
            lambda it: self.observe(self, it),
        )
        life.must_hear = self.is_journal_lost and any(self.disk.glob("snapshot*"))
        self.life = life
        await life.start()

    async def kill(self) -> None:
        """End a life without giving it time for anything: the next one finds the disk as it is at this moment."""
        life, before = self.life, self.disk
        self.life = None
        assert life is not None
        self._deaths += 1
        _copy_at_once(before, self.disk)
        await life.end()
        shutil.rmtree(before, ignore_errors=True)

    async def stop(self) -> None:
        """End a life that may finish what it writes."""
        life, self.life = self.life, None
        assert life is not None
        await life.end()

    def wipe(self) -> None:
        """Empty the disk."""
        shutil.rmtree(self.disk, ignore_errors=True)
        self.is_journal_lost = False

    def files(self) -> list[Path]:
        """Return what is on the disk, by name."""
        return sorted(each for each in self.disk.glob("*") if each.is_file())


def _copy_at_once(source: Path, target: Path) -> None:
    """Copy a folder as it was at one moment, although threads may be writing to it."""
    while True:
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir()
        before = _listed(source)
        try:
            for path in source.glob("*"):
                shutil.copyfile(path, target / path.name)
        except FileNotFoundError:
            continue
        if _listed(source) == before:
            return


def _listed(folder: Path) -> list[tuple[str, int, int, int]]:
    found = []
    for path in sorted(folder.glob("*")):
        try:
            stat = path.stat()
        except FileNotFoundError:
            continue
        found.append((path.name, stat.st_ino, stat.st_size, stat.st_mtime_ns))
    return found
