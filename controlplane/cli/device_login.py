"""This machine as a device of a gateway: its registration, and the wait for an operator's decision."""

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from controlplane.cli.gateway import (
    CallError,
    answered,
    explained,
    open_gateway,
    this_platform,
    this_version,
)
from controlplane.cli.output import note
from controlplane.cli.plain import Record
from controlplane.cli.profile import (
    DeviceCredential,
    Profile,
    ProfileError,
    prepared_path,
    read_profile,
    write_profile,
)

if TYPE_CHECKING:
    import httpx

# An operator who waits at the other end sees the effect at once; one who does not costs few calls.
FIRST_DELAY_S: Final = 1.0
LONGEST_DELAY_S: Final = 15.0
_BACK_OFF: Final = 1.5
# A data plane that does not know a new device yet answers as to an unknown one; all know it after seconds.
_UNKNOWN_FOR_S: Final = 30.0
# A registration waits until the data planes know the device, at most a second, after one transaction.
_PATIENCE_S: Final = 10.0
_OK: Final = 200
_CONFLICT: Final = 409
_UNAUTHORIZED: Final = 401
_PENDING: Final = "pending_approval"


@dataclass(frozen=True, slots=True)
class DeviceState:
    """Where a device stands, as the gateway says; fields that it did not give are None."""

    device_id: str
    status: str
    name: str | None = None
    user: str | None = None
    organization: str | None = None
    tier: str | None = None
    suspended_until: str | None = None
    suspension_reason: str | None = None

    @property
    def is_pending(self) -> bool:
        """Whether nobody has decided yet."""
        return self.status == _PENDING

    @property
    def is_approved(self) -> bool:
        """Whether it may call."""
        return self.status == "approved"

    def record(self) -> Record:
        """Return it as data."""
        return {
            "device_id": self.device_id,
            "name": self.name,
            "status": self.status,
            "user": self.user,
            "organization": self.organization,
            "tier": self.tier,
            "suspended_until": self.suspended_until,
            "suspension_reason": self.suspension_reason,
        }

    def sentence(self) -> str:
        """Say what the state means for its user."""
        match self.status:
            case "approved":
                return f"approved: calls count for {self.user or 'its user'}"
            case "pending_approval":
                return (
                    f"not approved yet: ask an operator to run `{approval_command(self.device_id)}`, "
                    "then run `tollkeeper login --device` again"
                )
            case "suspended":
                until = f" until {self.suspended_until}" if self.suspended_until else ""
                reason = f": {self.suspension_reason}" if self.suspension_reason else ""
                return f"suspended{until}{reason}; an operator may resume it"
            case "rejected" | "revoked":
                return (
                    f"{self.status}: ask an operator why; "
                    "`tollkeeper login --device` registers this machine anew"
                )
        return f"its status is {self.status}, which this program does not know: a newer one may"


def approval_command(device_id: str) -> str:
    """Return what an operator types to approve a device."""
    return f"tollkeeper device approve {device_id} --user ORGANIZATION/USER"


@dataclass(frozen=True, slots=True)
class Registered:
    """This machine's credential, and where the device stood when that was asked.

    `is_new` tells whether it was registered just now.
    """

    credential: DeviceCredential
    state: DeviceState
    is_new: bool


class DeviceLogin:
    """The conversation with one gateway about this machine."""

    def __init__(self, url: str) -> None:
        self._url = url

    def register(self, name: str) -> Registered:
        """Register this machine and keep its credential at once, for the gateway shows it this once.

        The gateway is shown the device that the profile has: as long as it is or may become of use it is kept, and no
        second one is added.

        Raises:
            CallError: The registration was refused; the profile is left as it was.
            ProfileError: The profile cannot be written. Found out beforehand where that is possible.
        """
        saved = self._saved()
        prepared_path()
        body = {"deviceName": name, "platform": this_platform(), "version": this_version()}
        try:
            with open_gateway(self._url, saved, _PATIENCE_S) as client:
                answer = answered(client.post("/v1/devices/register", json=body))
        except CallError as error:
            if saved is None or error.status != _CONFLICT:
                raise
            status = str(error.details.get("status", _PENDING))
            return Registered(saved, DeviceState(saved.device_id, status), is_new=False)
        match answer:
            case {"deviceId": str(device_id), "sessionToken": str(token)} if device_id and token:
                credential = DeviceCredential(device_id, token)
            case _:
                raise CallError(f"what answers at {self._url} is not a gateway: nothing was kept")
        write_profile(Profile(self._url, credential))
        return Registered(credential, DeviceState(device_id, _PENDING, name), is_new=True)

    def look_until_decided(self, credential: DeviceCredential, patience_s: float) -> DeviceState:
        """Return where the device stands, as soon as somebody has decided or `patience_s` seconds are over.

        Asks again and again, less and less often, and no earlier than the gateway wants to be asked. That it cannot be
        reached for a while does not end the wait.

        Raises:
            CallError: The device is refused, or nothing but failures was seen until the end.
        """
        began = time.monotonic()
        delay_s, has_told = FIRST_DELAY_S, False
        with open_gateway(self._url, credential, _PATIENCE_S) as client:
            while True:
                state, failure = self._look(client)
                elapsed_s = time.monotonic() - began
                if state is not None and (not state.is_pending or elapsed_s >= patience_s):
                    return state
                if failure is not None and _is_final(failure, elapsed_s, patience_s):
                    raise failure
                if failure is not None and failure.status != _UNAUTHORIZED and not has_told:
                    note(f"{failure}; asking again")
                    has_told = True
                wanted_s = failure.retry_after_s if failure and failure.retry_after_s else 0
                time.sleep(max(0.0, min(max(delay_s, wanted_s), patience_s - elapsed_s)))
                delay_s = min(delay_s * _BACK_OFF, LONGEST_DELAY_S)

    def _saved(self) -> DeviceCredential | None:
        """Return the device that the profile holds for this gateway."""
        try:
            profile = read_profile()
        except ProfileError:
            # It is about to be replaced.
            return None
        if profile is None or profile.url != self._url:
            return None
        credential = profile.credential
        return credential if isinstance(credential, DeviceCredential) else None

    def _look(self, client: "httpx.Client") -> tuple[DeviceState | None, CallError | None]:
        try:
            with explained(self._url):
                return _state_of(answered(client.get("/v1/devices/me")), self._url), None
        except CallError as error:
            return None, error


def _is_final(failure: CallError, elapsed_s: float, patience_s: float) -> bool:
    """Return whether asking again is pointless: the time is over, or the gateway said no."""
    if elapsed_s >= patience_s:
        return True
    if failure.status == _UNAUTHORIZED:
        return elapsed_s >= _UNKNOWN_FOR_S
    # No answer, or one that says that another time is better.
    return failure.status is not None and failure.status < 500 and failure.retry_after_s is None


def _state_of(answer: object, url: str) -> DeviceState:
    match answer:
        case {"deviceId": str(device_id), "status": str(status), **rest}:
            given = {str(name): value for name, value in rest.items() if isinstance(value, str)}
            return DeviceState(
                device_id=device_id,
                status=status,
                name=given.get("deviceName"),
                user=given.get("user"),
                organization=given.get("organization"),
                tier=given.get("tier"),
                suspended_until=given.get("suspendedUntil"),
                suspension_reason=given.get("suspensionReason"),
            )
    raise CallError(f"what answers at {url} is not a gateway", status=_OK)
