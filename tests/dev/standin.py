"""A program of the stack, reduced to how it starts, announces itself, answers and ends.

    python standin.py controlplane|dataplane|redis|mock [--data-dir D] [--host H] [--port N]

It writes what happens to the file STANDIN_LOG names, one line each. STANDIN_FAILS, STANDIN_HANGS and STANDIN_SILENT hold
the role that ends at its start, that ignores SIGTERM, or that never says that it serves.
"""

import argparse
import json
import os
import signal
import socket
import sys
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("role")
    parser.add_argument("--data-dir")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int)
    arguments = parser.parse_args()
    role, environ = arguments.role, os.environ
    name = environ.get("TOLLKEEPER_NODE_ID", role)
    if environ.get("STANDIN_FAILS") == role:
        sys.exit(f"{role}: cannot start today")

    def end(*_: object) -> None:
        log(f"stop {name}")
        os._exit(0)

    hangs = environ.get("STANDIN_HANGS") == role
    signal.signal(signal.SIGTERM, signal.SIG_IGN if hangs else end)
    setting = {"controlplane": "TOLLKEEPER_ADMIN_PORT", "dataplane": "TOLLKEEPER_PORT"}.get(role)
    port = int(environ[setting]) if setting else arguments.port
    with socket.create_server((arguments.host, port)) as server:
        port = server.getsockname()[1]
        settings = {key: value for key, value in environ.items() if key.startswith("TOLLKEEPER_")}
        log(f"start {name} {json.dumps({'port': port, 'pid': os.getpid(), 'settings': settings})}")
        sys.stderr.write(f"{name} listens\n")
        if environ.get("STANDIN_SILENT") != role:
            announce(role, port)
        while True:
            answer(server)


def announce(role: str, port: int) -> None:
    address = f"127.0.0.1:{port}"
    if role in ("redis", "mock"):
        url = f"redis://:a-redis-password@{address}/0" if role == "redis" else f"http://{address}"
        sys.stdout.write(json.dumps({"port": port, "url": url, "pid": os.getpid()}) + "\n")
        sys.stdout.write(f"{role} says more\n")
        sys.stdout.flush()
        return
    data_dir = Path(os.environ["TOLLKEEPER_DATA_DIR"])
    announcement: dict[str, object] = {"pid": os.getpid()}
    if role == "controlplane":
        (data_dir / "controlplane.sqlite").touch()
        announcement["admin_address"] = address
    else:
        announcement |= {"base_url": f"http://{address}", "port": port}
    beside = data_dir / "announcement"
    beside.write_text(json.dumps(announcement), encoding="utf-8")
    beside.rename(data_dir / f"{role}.ready")


def answer(server: socket.socket) -> None:
    connection, _ = server.accept()
    with connection:
        connection.recv(65_536)
        connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")


def log(line: str) -> None:
    with Path(os.environ["STANDIN_LOG"]).open("a", encoding="utf-8") as file:
        file.write(line + "\n")


if __name__ == "__main__":
    main()
