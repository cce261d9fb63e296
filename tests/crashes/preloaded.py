"""What every node has imported before it is forked, with leases of two seconds; nothing else imports this."""

import functools

from dataplane.limits import counters
from tests.crashes.node import LEASE_S

# Before anything is imported that reads it: the script, and the pace of renewals.
counters.LEASE_MS = int(LEASE_S * 1000)  # type: ignore[misc]  # final, and rightly so

from dataplane import app, counting  # noqa: E402, F401 - as above
from dataplane.maintenance.maintainer import Maintainer, Pace  # noqa: E402 - as above
from tests.crashes import points  # noqa: E402, F401 - as above


def shorten_leases() -> None:
    """Let the maintainer of this process keep the pace of its leases."""
    pace = Pace(
        beat=0.3,
        look=0.05,
        reap=0.2,
        reconcile_least=0.5,
        reconcile_most=0.5,
        quiet=0.5,
        between=0.3,
        retry=0.2,
        lease_ms=2_000,
        seen_within_ms=2_000,
    )
    vars(counting)["Maintainer"] = functools.partial(Maintainer, pace=pace)
