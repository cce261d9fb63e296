"""What comes of compiling: a snapshot with what is not in it, or the reasons why there is none."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from dataplane.control.compiling.state import Quarantined, State
from dataplane.domain.snapshot import Snapshot

MAX_PROBLEMS: Final = 20


@dataclass(frozen=True, slots=True)
class Compiled:
    """A snapshot, and all leaves that are not in it.

    `state` is what the next change is compiled from; `origin` what this one was compiled from.
    """

    snapshot: Snapshot
    quarantined: tuple[Quarantined, ...]
    state: State = field(repr=False)
    origin: State = field(repr=False)


class InvalidConfigurationError(Exception):
    """The content cannot be served. `problems` says why, one line each, at most 20."""

    def __init__(self, problems: Iterable[str]) -> None:
        self.problems = tuple(problems)[:MAX_PROBLEMS]
        super().__init__("; ".join(self.problems))
