"""What was spent of emergency budgets on a day, kept so that a restart gives nobody a second one.

A file a day, `emergency-20261121.spend`, in which lines are only added:

    <organization> <nano-USD> <checksum>

The last line of an organization counts. Its amount runs ahead of what was spent, by a step of the budget,
so that few requests write; a process that dies loses that step, one that ends writes the true amount.
"""

import contextlib
import os
import re
import zlib
from pathlib import Path
from typing import Final

import structlog

# So many writes use up a budget; so much of it a death loses.
STEPS: Final = 20
# Days before the present one whose files are kept: a clock may be wrong.
_KEPT_DAYS: Final = 2

_NAME: Final = re.compile(r"emergency-(\d{8})\.spend")
# Ids of organizations have no blanks.
_LINE: Final = re.compile(rb"(\S+) (\d{1,16}) ([0-9a-f]{8})")

_log: Final = structlog.get_logger(__name__)


class EmergencySpend:
    """The emergency spend of one day; belongs to one thread and has its file to itself.

    It keeps some 200 bytes of memory for each organization that spent. Writes are single write(2)
    calls on a small file, a handful per organization; the death of a host may lose the last seconds.
    """

    def __init__(self, directory: Path, day: str) -> None:
        """Read what was spent on `day`, `20261121`.

        A file that is damaged, or that cannot be read, counts as all budgets of the day.
        """
        self.day = day
        self._path = directory / f"emergency-{day}.spend"
        self._descriptor: int | None = None
        self._spent: dict[str, int] = {}
        self._kept: dict[str, int] = {}
        self.is_lost = False
        self._is_failing = False
        self._read()
        self._remove_older()

    def take(self, organization_id: str, amount_nanousd: int, budget_nanousd: int) -> bool:
        """Take `amount_nanousd` of a budget, or nothing; return whether there was room for it."""
        before = self._spent.get(organization_id, 0)
        spent = before + amount_nanousd
        # A budget that is used up admits nothing, not even what is free.
        if self.is_lost or before >= budget_nanousd or spent > budget_nanousd:
            return False
        if spent > self._kept.get(organization_id, 0):
            ahead = min(budget_nanousd, spent + budget_nanousd // STEPS)
            if not self._keep(organization_id, ahead):
                return False
        self._spent[organization_id] = spent
        return True

    def correct(self, organization_id: str, difference_nanousd: int) -> None:
        """Add to what was taken: the true figure is known."""
        spent = max(0, self._spent.get(organization_id, 0) + difference_nanousd)
        self._spent[organization_id] = spent
        if spent > self._kept.get(organization_id, 0):
            self._keep(organization_id, spent)

    def close(self) -> None:
        """Write the true amounts and close the file. Closing twice is harmless."""
        for organization_id, kept in list(self._kept.items()):
            spent = self._spent[organization_id]
            if kept != spent:
                self._keep(organization_id, spent)
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _keep(self, organization_id: str, amount_nanousd: int) -> bool:
        """Write an amount; return whether the disk took it."""
        if self.is_lost:
            return False
        line = _line(organization_id, amount_nanousd)
        try:
            if self._descriptor is None:
                flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
                self._descriptor = os.open(self._path, flags, 0o600)
            written = os.write(self._descriptor, line)
        except OSError as error:
            if not self._is_failing:
                self._is_failing = True
                _log.error("emergency_spend_not_kept", error=error.strerror)
            return False
        if written != len(line):
            # Half a line is damage: nobody could tell later what it was to say.
            self.is_lost = True
            _log.error("emergency_spend_damaged", file=self._path.name)
            return False
        self._is_failing = False
        self._kept[organization_id] = amount_nanousd
        return True

    def _read(self) -> None:
        try:
            data = self._path.read_bytes()
        except FileNotFoundError:
            return
        except OSError as error:
            self.is_lost = True
            _log.error("emergency_spend_unreadable", file=self._path.name, error=error.strerror)
            return
        lines = data.split(b"\n")
        # Every line ends: what follows the last end is nothing, or half of one.
        is_whole = lines.pop() == b""
        for line in lines:
            match = _LINE.fullmatch(line)
            if match is None or int(match[3], 16) != zlib.crc32(line[: match.end(2)]):
                is_whole = False
                break
            self._kept[match[1].decode("utf-8", "replace")] = int(match[2])
        if not is_whole:
            self.is_lost = True
            _log.error("emergency_spend_damaged", file=self._path.name)
        self._spent = dict(self._kept)

    def _remove_older(self) -> None:
        found = self._path.parent.glob("emergency-*.spend")
        older = sorted(path for path in found if _NAME.match(path.name) and path < self._path)
        for path in older[:-_KEPT_DAYS]:
            with contextlib.suppress(OSError):
                path.unlink()


def _line(organization_id: str, amount_nanousd: int) -> bytes:
    said = f"{organization_id} {amount_nanousd}".encode()
    return b"%b %08x\n" % (said, zlib.crc32(said))
