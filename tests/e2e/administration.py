"""The command line as an administrator uses it."""

import json
from typing import Any, Final

from typer.testing import Result

from tests.e2e.commands import invoke
from tests.e2e.stack import Stack
from tests.e2e.waiting import eventually

# What the issue promises: so long after traffic ended, every counter is what the ledger says.
AGREEMENT_S: Final = 60.0


class Administrator:
    """Runs commands of `tollkeeper` against one stack."""

    def __init__(self, stack: Stack) -> None:
        """Act as the administrator of `stack`."""
        self.stack = stack

    def run(self, *arguments: str) -> Result:
        """Run a command; its exit code and output are in what is returned."""
        return invoke(arguments, self.stack.settings)

    def __call__(self, *arguments: str) -> Any:  # whatever JSON it prints
        """Run a command with `-o json` and return what it printed.

        Raises:
            RefusedError: It failed.
        """
        return self.stack.tollkeeper(*arguments)

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
