"""The command line as an administrator uses it, without starting an interpreter for each command.

What is measured against a promise of a second must not wait for one; a busy machine takes two.
"""

import json
from typing import Any, Final

from typer.testing import CliRunner, Result

from controlplane.cli.app import app
from tests.e2e.stack import RefusedError, Secret, Stack, clean_environment
from tests.e2e.waiting import eventually

# What the issue promises: so long after traffic ended, every counter is what the ledger says.
AGREEMENT_S: Final = 60.0


class Administrator:
    """Runs commands of `tollkeeper` against one stack; not from several threads at once."""

    def __init__(self, stack: Stack) -> None:
        """Act as the administrator of `stack`."""
        self.stack = stack
        self._settings = {
            "TOLLKEEPER_ADMIN_ADDRESS": str(stack.line["admin_address"]),
            "TOLLKEEPER_ADMIN_TOKEN": str(stack.line["admin_token"]),
        }

    def run(self, *arguments: str) -> Result:
        """Run a command; its exit code and output are in what is returned."""
        return CliRunner().invoke(
            app, list(arguments), env=clean_environment(self._settings), catch_exceptions=False
        )

    def __call__(self, *arguments: str) -> Any:  # whatever JSON it prints
        """Run a command with `-o json` and return what it printed.

        Raises:
            RefusedError: It failed.
        """
        done = self.run(*arguments, "-o", "json")
        if done.exit_code:
            raise RefusedError(done.stderr)
        value = json.loads(done.stdout)
        if isinstance(value, dict) and "api_key" in value:
            self.stack.secrets.append(Secret(f"the API key {arguments[2]}", value["api_key"]))
        return value

    def differences(self) -> list[dict[str, Any]] | None:
        """Return what `verify` finds; None while nobody can say, or when it compares nothing."""
        done = self.run("verify", "-o", "json")
        try:
            found = json.loads(done.stdout)
        except ValueError:
            return None
        listed: list[dict[str, Any]] = found["differences"]
        assert len(listed) == found["differing"]
        return listed if found["compared"] else None

    def verified(self, deadline_s: float = AGREEMENT_S) -> None:
        """Wait until `verify` finds no difference.

        Raises:
            AssertionError: It still finds some; the last ones are shown.
        """
        last: list[list[dict[str, Any]] | None] = []

        def agrees() -> bool:
            last[:] = [self.differences()]
            return last == [[]]

        try:
            eventually(agrees, deadline_s)
        except AssertionError:
            raise AssertionError(f"verify after {deadline_s:.0f} s: {last}") from None

    def maintainer(self) -> int:
        """Return the number of the data plane that maintains the counters, counted from 0."""

        def holder() -> list[str]:
            return [node["node_id"] for node in self("node", "list") if node["maintains_counters"]]

        [node_id] = eventually(holder)
        return int(node_id.removeprefix("dev-")) - 1
