"""The stream of one node: what is said and heard on it, beside each other.

A stream has three parts. The handler says what the node's `Watcher` wants to say, message by
message. A task reads what the node says; because it is a task of its own, a node that reads slowly
is heard all the same. A second task is the judge of silence and standstill, and cuts the handler off
when it cannot end by itself, since it waits for a node that reads nothing.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Final, TypeAlias

import structlog
from tollkeeper.config.v1 import config_service_pb2 as pb

from controlplane.snapshots.fleet import Fleet
from controlplane.snapshots.open_stream import Ending, StreamViolationError
from controlplane.snapshots.transfers import Message
from controlplane.snapshots.watcher import Watcher

# A peer that reads nothing cannot be told why its stream ends; it is not waited for.
_FAREWELL_S: Final = 1.0

# 15 s: as long as silence may last. Who takes no message for so long holds up whoever waits to send everything.
STANDSTILL_S: Final = 15.0

Requests: TypeAlias = AsyncIterator[pb.StreamConfigRequest]

_log: Final = structlog.get_logger(__name__)


class NodeStream:
    """One open stream: its watcher, and the tasks beside its handler."""

    def __init__(self, fleet: Fleet, watcher: Watcher) -> None:
        self.watcher = watcher
        self._fleet = fleet
        self._handed_over_at_s: float | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._log = _log.bind(node_id=watcher.node_id, boot_id=watcher.boot_id)

    def start(self, requests: Requests) -> None:
        """Begin to read; called in the handler's task."""
        handler = asyncio.current_task()
        if handler is None:
            raise RuntimeError("a handler runs in a task")
        self._tasks = [
            asyncio.create_task(self._listen(requests)),
            asyncio.create_task(self._watch(handler)),
        ]
        applied = self.watcher.applied.revision
        self._log.info("node connected", version=self.watcher.version, revision=applied)

    def stop(self) -> None:
        """Forget the stream. Runs also when the handler was cut off or the connection is gone."""
        for task in self._tasks:
            task.cancel()
        self._detach()

    async def next_message(self) -> Message | None:
        """Wait for something to say; None when the stream is to end. Being called says that the last one was taken."""
        watcher = self.watcher
        self._handed_over_at_s = None
        while not watcher.ended.done():
            watcher.wake.clear()
            now_s = self._fleet.now_s()
            message = watcher.next_message(now_s)
            if message is not None:
                self._handed_over_at_s = now_s
                return message
            if watcher.wake.is_set():
                # What is set does not wait: this lets the others have their turn.
                await asyncio.sleep(0)
                continue
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(watcher.idle_s(now_s)):
                    await watcher.wake.wait()
        return None

    async def _listen(self, requests: Requests) -> None:
        """Take what the node says until the stream ends, then end the other side."""
        watcher = self.watcher
        try:
            while not watcher.ended.done():
                message = await anext(requests, None)
                if message is None:
                    watcher.end("the node ended the stream", Ending.DONE)
                    return
                watcher.heard_at_s = self._fleet.now_s()
                self._hear(message)
        except StreamViolationError as error:
            watcher.end(str(error), Ending.INVALID)
        except (
            Exception
        ) as error:  # task boundary: whatever the connection died of ends this stream only
            watcher.end("the stream cannot be read")
            self._log.warning("stream broken", error=repr(error))
        finally:
            self._detach()

    def _hear(self, message: pb.StreamConfigRequest) -> None:
        watcher = self.watcher
        match message.WhichOneof("message"):
            case "ack":
                watcher.hear_ack(message.ack)
                self._fleet.hear_applied(watcher)
            case "nack":
                watcher.hear_nack(message.nack)
                self._log.error(
                    "configuration refused by a node",
                    refusal=watcher.refusal,
                    problems=watcher.problems,
                )
            case "revocation_ack":
                self._fleet.hear_revocation_ack(watcher, message.revocation_ack)
            case "heartbeat":
                watcher.hear_heartbeat(message.heartbeat)
                self._fleet.hear_applied(watcher)
            case "counter_report":
                self._fleet.hear_counter_report(watcher, message.counter_report)
            case "hello":
                raise StreamViolationError("Hello is said once")
            case None:
                # A newer node may say what this control plane does not know.
                pass

    async def _watch(self, handler: asyncio.Task[object]) -> None:
        """End a stream that is silent or takes nothing; end the handler soon after, it may wait for who reads nothing."""
        watcher = self.watcher
        while not watcher.ended.done():
            dies_at_s, reason = self._dies_at_s()
            left_s = dies_at_s - self._fleet.now_s()
            if left_s <= 0:
                watcher.end(reason, Ending.SILENT)
            await asyncio.wait({watcher.ended}, timeout=max(left_s, 0))
        self._detach()
        await asyncio.sleep(_FAREWELL_S)
        handler.cancel()

    def _dies_at_s(self) -> tuple[float, str]:
        """Return when the stream is dead as things stand, and of what."""
        silent_at_s = self.watcher.silent_at_s
        handed_over_at_s = self._handed_over_at_s
        # A message that is handed over later is looked at in time all the same.
        still_at_s = (handed_over_at_s or self._fleet.now_s()) + STANDSTILL_S
        if still_at_s < silent_at_s:
            return still_at_s, "nothing was taken for 15 seconds"
        return silent_at_s, "nothing was heard for three heartbeats"

    def _detach(self) -> None:
        is_known = any(each is self.watcher for each in self._fleet.watchers())
        self._fleet.detach(self.watcher)
        if is_known:
            self._log.info("node disconnected", reason=self.watcher.ended.result())
