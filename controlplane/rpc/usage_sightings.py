"""Sightings of devices as they travel, made fit for the store.

A sighting is worth less than the records that travel with it: what cannot be kept is dropped, and never refused.
"""

from collections.abc import Iterable
from datetime import UTC, datetime
from itertools import islice
from typing import Any, Final

from sqlalchemy import String
from tollkeeper.usage.v1 import usage_service_pb2 as pb

from controlplane.store.sightings import SIGHTINGS

MAX_BATCH_SIGHTINGS: Final = 500

_LENGTHS: Final = {
    column.name: column.type.length or 0
    for column in SIGHTINGS.columns
    if isinstance(column.type, String)
}


def rows_from_sightings(
    sightings: Iterable[pb.DeviceSighting], now: datetime
) -> list[dict[str, Any]]:
    """Return a value for every column of each sighting that makes sense, of the first `MAX_BATCH_SIGHTINGS`.

    Text is cut to what its column holds, and without the NUL characters that PostgreSQL does not take. An instant after
    `now` is `now`: a node whose clock is ahead must not keep later sightings out.
    """
    found = []
    for sighting in islice(sightings, MAX_BATCH_SIGHTINGS):
        seen_at = _seen_at(sighting)
        if seen_at is not None and _is_storable_id(sighting.device_id):
            found.append(
                {
                    **{name: _text(sighting, name) for name in _LENGTHS},
                    "seen_at": min(seen_at, now),
                }
            )
    return found


def _text(sighting: pb.DeviceSighting, name: str) -> str:
    text: str = getattr(sighting, name)
    return text.replace("\0", "")[: _LENGTHS[name]]


def _is_storable_id(device_id: str) -> bool:
    # Cut or cleaned it would be the id of another device.
    return 0 < len(device_id) <= _LENGTHS["device_id"] and "\0" not in device_id


def _seen_at(sighting: pb.DeviceSighting) -> datetime | None:
    if not sighting.HasField("seen_at"):
        return None
    try:
        return sighting.seen_at.ToDatetime(tzinfo=UTC)
    except (ValueError, OverflowError):
        return None
