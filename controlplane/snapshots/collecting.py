"""The collector of cyclic garbage beside a configuration that is read whole.

A configuration is millions of objects without a cycle among them, all of which stay. Each time that the collector looks
through them the event loop stands still, for up to a second, and finds nothing.
"""

import contextlib
import gc
from collections.abc import Iterator
from typing import Final

# Fewer are looked through within a few milliseconds.
_LEAST_FROZEN: Final = 50_000


@contextlib.contextmanager
def not_collecting() -> Iterator[None]:
    """Collect no cyclic garbage during the block, which makes much that stays."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def keep_out_of_collections(count: int) -> None:
    """Never look through what there is now, if `count` objects of it are known to stay; they are freed as before."""
    if count >= _LEAST_FROZEN:
        gc.freeze()
