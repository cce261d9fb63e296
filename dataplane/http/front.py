"""What the handlers of all paths need of the rest of the data plane."""

from dataclasses import dataclass

from dataplane.domain.client_addresses import ClientAddresses
from dataplane.http.device_desk import DeviceDesk
from dataplane.http.health import Health
from dataplane.http.usage import OwnNumbers
from dataplane.pipeline import Pipeline


@dataclass(frozen=True, slots=True)
class Front:
    """Whoever serves a path finds here what it asks; one for both ways in."""

    pipeline: Pipeline
    addresses: ClientAddresses
    health: Health
    devices: DeviceDesk
    numbers: OwnNumbers
