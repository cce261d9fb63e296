"""How a request of the ledger ended."""

from enum import IntEnum


class UsageState(IntEnum):
    """How a request ended; the numbers are those of the contract's enum.

    What was released used nothing and counts nowhere; what is abandoned counts at what it reserved until its owner says
    how it ended.
    """

    SETTLED = 1
    RELEASED = 2
    ABANDONED = 3
