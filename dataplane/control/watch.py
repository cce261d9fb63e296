"""Keeps a configuration stream open, whatever happens to it or to the control planes."""

import asyncio
import time
from collections.abc import Callable
from typing import Final

import grpc
import structlog

from dataplane.changes import Changes
from dataplane.control.applying import Applier, Compiling, Keeping
from dataplane.control.channels import channel_to
from dataplane.control.compile import Compiler
from dataplane.control.counter_tasks import Handler
from dataplane.control.current import CurrentSnapshot
from dataplane.control.figures import StreamFigures
from dataplane.control.heartbeats import Condition
from dataplane.control.hello import Node
from dataplane.control.holdings import Holdings
from dataplane.control.kept import Kept
from dataplane.control.overheard import Overheard
from dataplane.control.reconnects import Ending, Reconnects
from dataplane.control.revoking import OnRevocation, TooManyRevocationsError, tell_again
from dataplane.control.session import Parts, Session, UnreadableMessageError

__all__ = ["Condition", "Node", "Watch"]

# What an operator must change, or a peer that is not ours: asking often does not help.
_REFUSED: Final = (
    grpc.StatusCode.UNAUTHENTICATED,
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.UNIMPLEMENTED,
)

_log: Final = structlog.get_logger(__name__)


class Watch:
    """Keeps `current` at the control plane's newest configuration; run it as a task.

    Args:
        addresses: Control planes, `host:port`, tried in turn.
        node: Who this is.
        current: What is kept up to date.
        clock_ms: Unix milliseconds.
        condition: What heartbeats say of this node.
        keeper: Keeps on the disk what is in force; None: nothing is kept.
        on_counter_task: Does what the control plane asks of the counters, one task at a time; it is
            cancelled with the stream. None: such tasks are met with silence.
        on_revocation: Called with every revocation that is heard, when it is in force here; it must
            not block.
        changes: Noted by others whenever counters can or cannot be asked, or are maintained
            elsewhere, and by this one with every configuration that it puts in force.
        compiler: Makes snapshots.
        connect: Opens a channel to an address.

    Attributes:
        figures: What can be counted of the stream.
        overheard: Takes revocations that came by another way than the stream.
    """

    def __init__(
        self,
        addresses: tuple[str, ...],
        node: Node,
        current: CurrentSnapshot,
        clock_ms: Callable[[], int],
        *,
        condition: Condition | None = None,
        keeper: Keeping | None = None,
        on_counter_task: Handler | None = None,
        on_revocation: OnRevocation | None = None,
        changes: Changes | None = None,
        compiler: Compiling | None = None,
        connect: Callable[[str], grpc.aio.Channel] = channel_to,
    ) -> None:
        """Prepare; nothing is opened before `run`."""
        self.figures: Final = StreamFigures()
        self.overheard: Final = Overheard(current, keeper, clock_ms)
        self._connect = connect
        self._reconnects = Reconnects(addresses)
        changes = changes or Changes()
        self._applier = Applier(
            current, compiler or Compiler(), keeper, clock_ms, changes, self.figures
        )
        self._parts = Parts(
            node=node,
            current=current,
            applier=self._applier,
            keeper=keeper,
            condition=condition or Condition(),
            changes=changes,
            figures=self.figures,
            clock_ms=clock_ms,
            on_counter_task=on_counter_task,
            on_revocation=on_revocation,
        )

    @property
    def holdings(self) -> Holdings:
        """Return what is in force as it was received; it is not for changing."""
        return self._applier.holdings

    async def restore(self, kept: Kept) -> bool:
        """Serve what an earlier process left, before `run`; return whether it can be served.

        What was revoked then is passed on as if it were heard now: Redis may have lost it meanwhile.
        """
        tell_again(kept.revocations, self._parts.on_revocation)
        return await self._applier.restore(kept)

    async def run(self) -> None:
        """Hold a stream until cancelled."""
        while True:
            address = self._reconnects.address()
            session = Session(self._parts)
            ending, reason = await self._hold(session, address)
            held_at = session.welcome_at
            held_seconds = 0.0 if held_at is None else time.monotonic() - held_at
            delay_seconds = self._reconnects.delay_seconds(ending, held_seconds)
            self._log_ending(ending, reason, address)
            await asyncio.sleep(delay_seconds)

    async def _hold(self, session: Session, address: str) -> tuple[Ending, str]:
        """Hold one stream; return how it ended, and why in a word."""
        try:
            async with self._connect(address) as channel:
                await session.run(channel)
            ending, reason = Ending.LOST, "ended"
        except grpc.aio.AioRpcError as error:
            ending, reason = _ending_of(error.code()), error.code().name
        except (TimeoutError, asyncio.QueueFull, TooManyRevocationsError) as error:
            ending, reason = Ending.LOST, type(error).__name__
        except UnreadableMessageError as error:
            ending, reason = Ending.REFUSED, type(error).__name__
        except Exception as error:
            # The last boundary: without this task no change and no revocation would arrive.
            ending, reason = Ending.LOST, type(error).__name__
            _log.exception("config_stream_failed", address=address)
        finally:
            self.figures.is_connected = False
        return (Ending.GOODBYE if session.has_goodbye else ending), reason

    def _log_ending(self, ending: Ending, reason: str, address: str) -> None:
        failures = self._reconnects.failures
        if ending is Ending.BANNED or reason == grpc.StatusCode.UNAUTHENTICATED.name:
            _log.error("node_token_refused", address=address, setting="TOLLKEEPER_JOIN_TOKEN")
        elif ending is not Ending.GOODBYE and (failures in (1, 10) or failures % 100 == 0):
            _log.warning("config_stream_lost", address=address, reason=reason, failures=failures)


def _ending_of(code: grpc.StatusCode) -> Ending:
    if code is grpc.StatusCode.PERMISSION_DENIED:
        return Ending.BANNED
    return Ending.REFUSED if code in _REFUSED else Ending.LOST
