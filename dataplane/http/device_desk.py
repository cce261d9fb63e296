"""What the paths of devices need from the rest of the data plane."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from dataplane.domain.authentication import proven_device
from dataplane.domain.credentials import Credentials
from dataplane.domain.guards import Check, Verdict
from dataplane.domain.principals import DeviceStatus
from dataplane.domain.registration import Registration
from dataplane.http.exchange import HttpRequest
from dataplane.pipeline import Pipeline

PLATFORM_HEADER: Final = "x-device-platform"
VERSION_HEADER: Final = "x-device-version"


class Guards(Protocol):
    """What slows down."""

    async def admit(self, checks: Sequence[Check]) -> Verdict:
        """Count one call with all of `checks` or with none, or raise LimitsUnavailable."""


class Registered(Protocol):
    """A new device and its credential."""

    @property
    def device_id(self) -> str:
        """Its id."""

    @property
    def session_token(self) -> str:
        """Its session token: shown to its client, this once, and to nobody else."""

    @property
    def status(self) -> DeviceStatus:
        """Where it stands."""


class Enrollment(Protocol):
    """What knows the control plane."""

    async def register(self, registration: Registration) -> Registered:
        """Add a device that waits for approval, or raise Refusal."""


class Sightings(Protocol):
    """What remembers when a device called."""

    def note(
        self,
        device_id: str,
        now_ms: int,
        address: str,
        user_agent: str = "",
        platform: str = "",
        version: str = "",
    ) -> None:
        """Note that a device proved its token."""


@dataclass(frozen=True, slots=True)
class DeviceDesk:
    """What the device paths need: who is known, who may ask, who answers, and who remembers."""

    pipeline: Pipeline
    guards: Guards
    enrollment: Enrollment
    sightings: Sightings


def note_caller(desk: DeviceDesk, credentials: Credentials, request: HttpRequest) -> None:
    """Note a device that calls, whether or not it will be served; not one whose token is not its own.

    Raises:
        Refusal: CONFIGURATION_UNAVAILABLE.
    """
    device = proven_device(desk.pipeline.current.get(), credentials)
    if device is not None:
        note_device(desk.sightings, device.device_id, request, desk.pipeline.clock_ms())


def note_device(sightings: Sightings, device_id: str, request: HttpRequest, now_ms: int) -> None:
    """Note that the device of `request` proved its token, with what it says of itself."""
    headers = request.headers
    sightings.note(
        device_id,
        now_ms,
        request.address,
        headers.get("user-agent", ""),
        headers.get(PLATFORM_HEADER, ""),
        headers.get(VERSION_HEADER, ""),
    )
