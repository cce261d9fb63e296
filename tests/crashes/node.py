"""A data plane as it is shipped, but that a lease of its requests ends after two seconds instead of 30.

`python -m tests.crashes.node [POINT]` reads the settings of `python -m dataplane`, and kills itself at
the point. All that count in one Redis must have the same lease: it is written into the script.
"""

import asyncio
import functools
import sys

from dataplane.limits import counters
from dataplane.settings import read_settings

LEASE_S = 2.0


def main() -> None:
    """Serve until a signal, or until the point that the only argument names."""
    # Before anything is imported that reads it: the script, and the pace of renewals.
    counters.LEASE_MS = int(LEASE_S * 1000)  # type: ignore[misc]  # final, and rightly so
    from dataplane import app, counting
    from dataplane.maintenance.maintainer import Maintainer, Pace
    from dataplane.telemetry import configure_logging
    from tests.crashes.points import Point, arm

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
    for name in sys.argv[1:]:
        arm(Point(name))
    settings = read_settings()
    configure_logging(settings.log_level, settings.log_format, settings.log_prefix)
    asyncio.run(app.run(settings))


if __name__ == "__main__":
    main()
