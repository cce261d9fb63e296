"""The command line itself: help, wrong usage, and what loads when."""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator

import pytest
import typer
from typer.core import TyperCommand, TyperGroup

from controlplane.cli.app import app
from tests.cli.conftest import Run
from tests.cli.scripted import ScriptedControlPlane


def commands(
    group: TyperGroup, path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], TyperCommand]]:
    for name, command in group.commands.items():
        if isinstance(command, TyperGroup):
            yield from commands(command, (*path, name))
        else:
            assert isinstance(command, TyperCommand)
            yield (*path, name), command


def root() -> TyperGroup:
    group = typer.main.get_command(app)
    assert isinstance(group, TyperGroup)
    return group


COMMANDS = dict(commands(root()))


def examples_of(help_text: str) -> list[list[str]]:
    """Return the examples of a help text as command lines, without the program's name."""
    _, _, shown = help_text.partition("Example:\n")
    lines = [line.strip() for line in shown.splitlines() if line.strip()]
    return [shlex.split(line.rpartition("| ")[2])[1:] for line in lines]


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_every_command_has_help_with_an_example(program: Run, path: tuple[str, ...]) -> None:
    result = program(*path, "--help")

    assert result.exit_code == 0
    first_line = result.stdout.split("\n\n")[1].strip()
    assert re.fullmatch(r"[A-Z].+[.:]", first_line.splitlines()[0]) or "\n" in first_line
    assert examples_of(result.stdout)


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_every_example_is_a_command_line_that_the_program_takes(
    program: Run, path: tuple[str, ...]
) -> None:
    for line in examples_of(program(*path, "--help").stdout):
        assert tuple(line[: len(path)]) == path
        COMMANDS[path].make_context(" ".join(path), line[len(path) :])


@pytest.mark.parametrize(
    "path", [path for path in COMMANDS if path[-1] in ("get", "list", "create")], ids=" ".join
)
def test_every_command_that_prints_data_takes_the_three_formats(path: tuple[str, ...]) -> None:
    (output,) = [param for param in COMMANDS[path].params if "-o" in param.opts]

    assert "--output" in output.opts


def test_the_nouns_and_verbs_are_those_that_were_promised() -> None:
    assert {" ".join(path) for path in COMMANDS} >= {
        *("dev", "controlplane", "dataplane", "mock", "health", "chat", "usage", "logs"),
        *("login", "logout", "doctor"),
        *("db upgrade", "db current", "node list", "price set", "price list", "price delete"),
        *("org create", "org get", "org list", "org update", "org delete"),
        *("user create", "user get", "user list", "user update", "user delete"),
        *("user suspend", "user activate", "key revoke"),
        *("key create", "key get", "key list", "key update", "key delete"),
        *("provider create", "provider get", "provider list", "provider update"),
        *("provider delete", "credential create", "credential get", "credential list"),
        *("credential delete", "credential rotate", "router create", "router get", "router list"),
        *("router update", "router delete", "rule create", "rule list", "rule update"),
        *("rule delete", "limit set", "limit get", "limit list", "limit delete"),
        *("admin create", "admin list", "admin delete", "price get"),
        *("device list", "device get", "device approve", "device reject", "device suspend"),
        *("device resume", "device revoke", "device rotate", "device update", "device delete"),
        *("tier create", "tier get", "tier list", "tier update", "tier delete"),
        *("audit list", "status", "verify", "explain", "limit override", "limit reset"),
        *("limit reset-clock", "budget list", "budget events", "budget override"),
        *("budget reset", "user reset-quota", "service pause", "service resume"),
    }


@pytest.mark.parametrize(
    "line",
    [
        "nothing",
        "org",
        "org create",
        "org create acme --monthly-budget-usd 0.0000000001",
        "org create acme --monthly-budget-usd 1e3",
        "org create acme --monthly-budget-usd -1",
        "org create acme --on-limits-unavailable maybe",
        "org create acme --soft",
        "org create acme --shadow",
        "org list -o csv",
        "org update acme",
        "user create acme/a --daily-requests 1.5",
        "user create acme/a --daily-requests -1",
        "user create acme/a --daily-requests 1000000000000001",
        "user update acme/a",
        "key update acme/a/k",
        "key create acme/a/k --expires tomorrow",
        "key revoke acme/a/k --wait 31s",
        "key revoke acme/a/k --wait 2",
        "provider create acme/up",
        "provider create acme/up --kind bedrock",
        "provider create acme/up --kind openai --base-url ftp://h",
        "provider update acme/up",
        "rule create acme/r1 --priority 1 --provider acme/up",
        "rule create acme/r1 --priority 1 --provider acme/up --models * --alias fast",
        "rule create acme/r1 --priority 1 --provider acme/up --models * --alias a=b --alias a=c",
        "rule create acme/r1 --priority -1 --provider acme/up --models *",
        "rule update r1",
        "price set --provider p --model m",
        "price set --provider p --model m --output-usd-per-million 0",
        "price set --provider p --model m --free --input-usd-per-million 1",
        "price set --provider p --model m --free --from 1.1.2026",
        "price set --model m --free",
        "limit set --requests-per-day 1",
        "limit set --user acme/a --org acme --requests-per-day 1",
        "limit set --user acme/a",
        "limit get",
        "limit delete --global --only requests-per-year",
        "limit set --tier free --device d1 --requests-per-day 1",
        "limit get --ip 203.0.113.7 --global",
        "limit set --user acme/a --requests 5",
        "limit set --user acme/a --every 1s",
        "limit set --user acme/a --burst 5",
        "limit set --user acme/a --requests-per-day 1 --burst 5",
        "limit set --user acme/a --requests 5 --every 25h",
        "limit set --user acme/a --requests 5 --every 0s",
        "limit set --user acme/a --requests 5 --every 1s --burst 0",
        "limit set --user acme/a --requests 5 --requests-per-second 5 --every 1s",
        "limit set --user acme/a --requests-per-second 5 --every 1s",
        "limit set --user acme/a --requests none --every 1s",
        "limit set --user acme/a --requests none --burst 2",
        "limit set --endpoint chat --model m --requests-per-day 1",
        "limit set --endpoint= --requests-per-day 1",
        "limit delete --tier free --temporary",
        "limit override --user acme/a --requests-per-day 1",
        "limit override --user acme/a --for 1h",
        "limit override --user acme/a --requests-per-day 1 --for 1h --until 2099-01-01",
        "limit override --user acme/a --requests-per-day 1 --for 0s",
        "limit override --user acme/a --requests-per-day 1 --for 3651d",
        "limit override --user acme/a --requests-per-day 1 --until 2020-01-01",
        "limit override --user acme/a --requests-per-day 1 --until 24h",
        "limit override --tier free --requests-per-day 1 --for 1h",
        "limit override --requests-per-day 1 --for 1h",
        "limit reset",
        "limit reset --tier free",
        "limit reset --user acme/a --only parallel",
        "budget list --user acme/a --org acme",
        "budget override --user acme/a --requests-per-day 1 --for 1h",
        "budget override --user acme/a --for 1h",
        "budget reset",
        "budget reset --user acme/a --only requests-per-day",
        "user reset-quota",
        "explain",
        "tier update free --device-requests 5",
        "device approve",
        "device approve d1",
        "device list --status asleep",
        "device suspend d1 --for 500ms",
        "device suspend d1 --for 3651d",
        "device suspend d1 --for tomorrow",
        "device revoke d1 --wait 31s",
        "device update d1",
        "tier create none",
        "tier create trial --soft",
        "tier create trial --device-requests-per-day 5 --soft",
        "tier update free",
        "tier update free --shadow",
        "tier update free --requests-per-day 5",
        "tier update free --device-requests-per-day many",
        "audit list --limit 0",
        "audit list --since yesterday",
        "admin create ops-bot",
        "admin create ops-bot --role king",
        "usage --by colour",
        "usage --since yesterday",
        "logs --limit 0",
        "mock --port 65536",
        "health ftp://h",
        "health http://h:x",
    ],
)
def test_wrong_usage_is_exit_code_2_and_asks_nothing(
    run: Run, control_plane: ScriptedControlPlane, line: str
) -> None:
    result = run(*line.split())

    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr
    assert control_plane.asked == []


def test_help_loads_neither_grpc_nor_anything_else_that_is_slow() -> None:
    program = (
        "import sys\n"
        "from controlplane.cli import main\n"
        "try:\n"
        "    main()\n"
        "finally:\n"
        "    slow = {'grpc', 'google', 'httpx', 'rich', 'yaml', 'sqlalchemy', 'pydantic', 'tollkeeper'}\n"
        "    print('LOADED', sorted(slow & set(sys.modules)))\n"
    )

    done = subprocess.run(
        [sys.executable, "-c", program, "--help"], capture_output=True, text=True, timeout=30
    )

    assert done.returncode == 0, done.stderr
    assert "LOADED []" in done.stdout
    assert "Usage: tollkeeper" in done.stdout


@pytest.mark.parametrize(
    ("line", "module", "arguments"),
    [
        ("controlplane", "controlplane", []),
        ("dataplane", "dataplane", []),
        (
            "mock --host 127.0.0.2 --port 9090",
            "dataplane.mock",
            ["--host", "127.0.0.2", "--port", "9090"],
        ),
    ],
)
def test_a_program_takes_the_place_of_the_command_line(
    program: Run, monkeypatch: pytest.MonkeyPatch, line: str, module: str, arguments: list[str]
) -> None:
    become: list[tuple[str, list[str]]] = []

    def execv(path: str, argv: list[str]) -> None:
        become.append((path, argv))
        raise SystemExit(0)  # the real one does not come back either

    monkeypatch.setattr(os, "execv", execv)

    program(*line.split())

    assert become == [(sys.executable, [sys.executable, "-m", module, *arguments])]
