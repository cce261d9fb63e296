"""`python -m controlplane`: read the settings, serve until a signal."""

import asyncio
import contextlib
import gc
import signal
import sys
from contextlib import AbstractAsyncContextManager

from controlplane.settings import SettingsError, load_settings
from controlplane.telemetry import configure_logging, redact_text

EXIT_WRONG_USAGE = 2


async def serve(serving: AbstractAsyncContextManager[str]) -> None:
    """Serve until SIGTERM or SIGINT.

    Raises:
        StartError: The control plane cannot start.
    """
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    async with serving:
        await stopped.wait()


def main() -> int:
    """Run a control plane; return the exit status."""
    try:
        settings = load_settings()
    except SettingsError as error:
        return _refuse(str(error))
    # What importing makes stays: looking through it for garbage, again and again, takes an eighth of the start.
    gc.disable()
    from controlplane.server import StartError, serving

    gc.freeze()
    gc.enable()
    configure_logging(settings.log_level, settings.log_format)
    try:
        asyncio.run(serve(serving(settings)))
    except StartError as error:
        return _refuse(str(error))
    return 0


def _refuse(reason: str) -> int:
    with contextlib.suppress(OSError):
        sys.stderr.write(f"tollkeeper controlplane: {redact_text(reason)}\n")
    return EXIT_WRONG_USAGE


if __name__ == "__main__":
    sys.exit(main())
