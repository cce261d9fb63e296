"""Data-plane clients of the configuration stream, several in one process: `python -m tests.configuration.nodes_program`.

Everything is the product's but what is behind the snapshot: no port, no Redis. Says on stdout, one JSON object a line,
what came into force and when, by the clock of this machine.
"""

import argparse
import asyncio
import json
import resource
import sys
import time
from typing import Any

import structlog

from dataplane.changes import Changes
from dataplane.control.compile import Compiler
from dataplane.control.current import CurrentSnapshot
from dataplane.control.watch import Node, Watch
from dataplane.domain.revocations import Revocation


def say(node_id: str, **fields: Any) -> None:  # Any: JSON
    """Tell the test something about a node."""
    line = json.dumps({"node": node_id, "at_ns": time.time_ns(), **fields})
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


async def follow(addresses: tuple[str, ...], node_id: str, token: str) -> None:
    """Be one node for ever."""
    changes, current = Changes(), CurrentSnapshot()

    def revoked(revocation: Revocation) -> None:
        is_refused = revocation.subject in current.revocations
        say(node_id, revoked=revocation.subject_id, revision=revocation.revision, on=is_refused)

    watch = Watch(
        addresses,
        Node(node_id, "0.1.0", token),
        current,
        lambda: time.time_ns() // 1_000_000,
        on_revocation=revoked,
        changes=changes,
        compiler=Compiler(),
    )
    following = asyncio.create_task(watch.run())
    said = None
    while not following.done():
        number = changes.number
        position = watch.holdings.position
        if position != said:
            said = position
            say(
                node_id,
                applied=position.revision,
                epoch=position.config_epoch,
                fulls=watch.figures.transfers_total["full"],
                deltas=watch.figures.transfers_total["delta"],
                rss_kib=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
            )
        await changes.after(number, 60.0)
    await following


async def follow_all(addresses: tuple[str, ...], names: list[str], token: str) -> None:
    """Be all nodes until one of them fails, which none may."""
    await asyncio.gather(*(follow(addresses, name, token) for name in names))


def main() -> None:
    """Read what to be from the command line; the token from stdin."""
    parser = argparse.ArgumentParser()
    parser.add_argument("addresses", help="control planes, with commas")
    parser.add_argument("names", help="ids of the nodes, with commas")
    options = parser.parse_args()
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    token = sys.stdin.readline().strip()
    addresses = tuple(options.addresses.split(","))
    asyncio.run(follow_all(addresses, options.names.split(","), token))


if __name__ == "__main__":
    main()
