"""The data plane as a program: `python -m dataplane`."""

import asyncio
import gc
import sys

from dataplane.settings import SettingsError, read_settings


def main() -> int:
    """Serve until a signal; 0 after a clean stop, 1 when it cannot serve, 2 for bad settings."""
    try:
        settings = read_settings()
    except SettingsError as error:
        sys.stderr.write(f"tollkeeper dataplane: {error}\n")
        return 2
    # What importing makes stays: looking through it for garbage, again and again, takes an eighth of the start.
    gc.disable()
    from dataplane.app import run
    from dataplane.control.spool import SpoolInUseError
    from dataplane.telemetry import configure_logging

    gc.freeze()
    gc.enable()
    configure_logging(settings.log_level, settings.log_format, settings.log_prefix)
    try:
        asyncio.run(run(settings))
    except (OSError, ValueError, SpoolInUseError) as error:
        sys.stderr.write(f"tollkeeper dataplane: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
