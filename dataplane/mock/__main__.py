"""The program: `python -m dataplane.mock --host 127.0.0.1 --port 8090`.

It prints one line of JSON when it listens, `{"port": n, "url": "http://…"}`, and stops at once on
SIGTERM or SIGINT.
"""

import argparse
import asyncio
import json
import signal
import sys

from dataplane.mock.server import serve

_MAX_PORT = 65_535


def main() -> None:
    """Serve until a signal; exits with 1 if the address cannot be bound."""
    parser = argparse.ArgumentParser(
        prog="python -m dataplane.mock",
        description="A provider that speaks real dialects and misbehaves by model name.",
    )
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8090, help="0 takes a free one")
    arguments = parser.parse_args()
    if not 0 <= arguments.port <= _MAX_PORT:
        parser.error(f"a port is a number from 0 to {_MAX_PORT}")
    try:
        asyncio.run(_run(arguments.host, arguments.port))
    except OSError as error:
        sys.exit(f"cannot listen on {arguments.host} port {arguments.port}: {error.strerror}")


async def _run(host: str, port: int) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with await serve(host, port) as server:
        sys.stdout.write(json.dumps({"port": server.port, "url": server.url}) + "\n")
        sys.stdout.flush()
        await stop.wait()


if __name__ == "__main__":
    main()
