import asyncio
import json
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator

import httpx
import pytest


@pytest.fixture
async def program() -> AsyncIterator[Process]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "dataplane.mock", "--port", "0", stdout=PIPE, stderr=PIPE
    )
    yield process
    if process.returncode is None:
        process.kill()
    await process.communicate()


async def first_line(process: Process) -> bytes:
    assert process.stdout is not None
    async with asyncio.timeout(10):
        return await process.stdout.readline()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_the_program_says_where_it_listens_and_stops_at_a_signal(
    program: Process, number: signal.Signals
) -> None:
    where = json.loads(await first_line(program))
    assert where == {"port": where["port"], "url": f"http://127.0.0.1:{where['port']}"}
    async with httpx.AsyncClient(base_url=where["url"], trust_env=False) as http:
        # A kept connection must not hold the program back.
        assert (await http.get("/health")).status_code == 200

        program.send_signal(number)
        async with asyncio.timeout(2):
            out, errors = await program.communicate()

    assert program.returncode == 0
    assert (out, errors) == (b"", b"")


async def test_a_port_that_is_taken_is_said_in_one_line(program: Process) -> None:
    port = json.loads(await first_line(program))["port"]

    second = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "dataplane.mock", "--port", str(port)), stdout=PIPE, stderr=PIPE
    )
    async with asyncio.timeout(10):
        out, errors = await second.communicate()

    assert second.returncode == 1
    assert out == b""
    assert errors.startswith(f"cannot listen on 127.0.0.1 port {port}".encode())
    assert errors.count(b"\n") == 1


async def test_the_program_loads_nothing_beyond_the_standard_library_and_msgspec() -> None:
    code = (
        "import sys; before = set(sys.modules); import dataplane.mock.__main__\n"
        "new = {name.partition('.')[0] for name in set(sys.modules) - before}\n"
        "print(*sorted(new - set(sys.stdlib_module_names)))"
    )
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", code, stdout=PIPE)
    out, _ = await process.communicate()

    # msgspec itself may bring typing_extensions.
    assert set(out.split()) - {b"typing_extensions"} == {b"dataplane", b"msgspec"}
