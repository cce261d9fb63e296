"""Which devices called lately: told to the control plane now and then, lost without harm."""

from collections import OrderedDict
from dataclasses import dataclass
from itertools import islice
from typing import Final

from google.protobuf.timestamp_pb2 import Timestamp
from tollkeeper.usage.v1 import usage_service_pb2 as pb

from dataplane.domain.registration import (
    MAX_PLATFORM_LENGTH,
    MAX_USER_AGENT_LENGTH,
    MAX_VERSION_LENGTH,
)

# As many as one batch may carry.
MAX_TAKEN: Final = 500
# About 5 MB at most, whatever callers put into their headers.
MAX_DEVICES: Final = 10_000
# A device that calls all the time is noted so often: no reader needs its last call to the second.
REPEAT_MS: Final = 10_000


@dataclass(frozen=True, slots=True)
class Sighting:
    """A device proved its token. Texts are what the caller said, cut; `seen_at_ms` is Unix time."""

    device_id: str
    seen_at_ms: int
    address: str
    user_agent: str = ""
    platform: str = ""
    version: str = ""


class Sightings:
    """The last call of each device, for whoever delivers it; not for several threads.

    Of more than `MAX_DEVICES` the newest are kept: a sighting that is forgotten comes again with the
    device's next call, and the older it is, the less anybody asks for it.
    """

    __slots__ = ("_latest", "_waiting")

    def __init__(self) -> None:
        # In the order in which they were noted. A plain dictionary would look for its oldest entry
        # among all that were deleted before it.
        self._latest: OrderedDict[str, Sighting] = OrderedDict()
        # Those that nobody has taken yet.
        self._waiting: dict[str, Sighting] = {}

    def __len__(self) -> int:
        """Return how many wait to be taken."""
        return len(self._waiting)

    def note(
        self,
        device_id: str,
        now_ms: int,
        address: str,
        user_agent: str = "",
        platform: str = "",
        version: str = "",
    ) -> None:
        """Note that a device proved its token; the last one of a device stands for all before.

        The same again within ten seconds costs a look and no memory.

        Args:
            device_id: The device's id.
            now_ms: Unix milliseconds.
            address: The client's address in canonical text.
            user_agent: Its User-Agent; cut to 256 characters.
            platform: Its `X-Device-Platform`, cut to 64 characters; where it says none, what it
                said before stays.
            version: Its `X-Device-Version`, likewise.
        """
        if len(user_agent) > MAX_USER_AGENT_LENGTH:
            user_agent = user_agent[:MAX_USER_AGENT_LENGTH]
        if len(platform) > MAX_PLATFORM_LENGTH:
            platform = platform[:MAX_PLATFORM_LENGTH]
        if len(version) > MAX_VERSION_LENGTH:
            version = version[:MAX_VERSION_LENGTH]
        latest = self._latest.get(device_id)
        if (
            latest is not None
            and 0 <= now_ms - latest.seen_at_ms < REPEAT_MS
            and latest.address == address
            and latest.user_agent == user_agent
            and (not platform or latest.platform == platform)
            and (not version or latest.version == version)
        ):
            return
        if latest is not None:
            platform, version = platform or latest.platform, version or latest.version
        self._keep(Sighting(device_id, now_ms, address, user_agent, platform, version))

    def take(self, limit: int = MAX_TAKEN) -> list[Sighting]:
        """Return what waits, the oldest first and at most `limit`; it waits no longer."""
        return [self._waiting.pop(each) for each in list(islice(self._waiting, limit))]

    def _keep(self, sighting: Sighting) -> None:
        device_id = sighting.device_id
        self._latest.pop(device_id, None)
        self._waiting.pop(device_id, None)
        if len(self._latest) >= MAX_DEVICES:
            oldest, _ = self._latest.popitem(last=False)
            self._waiting.pop(oldest, None)
        self._latest[device_id] = self._waiting[device_id] = sighting


def message_from(sighting: Sighting) -> pb.DeviceSighting:
    """Return the message that tells the ledger of a sighting."""
    seen_at = Timestamp()
    seen_at.FromMilliseconds(sighting.seen_at_ms)
    return pb.DeviceSighting(
        device_id=sighting.device_id,
        seen_at=seen_at,
        address=sighting.address,
        user_agent=sighting.user_agent,
        platform=sighting.platform,
        version=sighting.version,
    )
