"""What `tollkeeper doctor` asks a gateway: whether it is ready, what time it is there, and who we are to it."""

import time
from collections.abc import Iterator, Mapping
from email.utils import parsedate_to_datetime
from typing import Final

import typer

from controlplane.cli.connection import (
    ClientSettings,
    SetUpError,
    find_admin_settings,
    find_client_settings,
    setting,
)
from controlplane.cli.device_login import approval_command
from controlplane.cli.findings import Finding, unwell, well
from controlplane.cli.gateway import CallError, answered, json_of, open_gateway
from controlplane.cli.profile import DeviceCredential, checked_url

_PATIENCE_S: Final = 5.0
_OK: Final = 200
_UNAUTHORIZED: Final = 401
# The header has whole seconds, and the way takes time. Beyond this, instants that are shown mislead.
_MOST_SKEW_S: Final = 5.0


def gateway_findings() -> Iterator[Finding]:
    """Look at the gateway that a client's commands here would call, as far as the settings name one."""
    settings: ClientSettings | None = None
    try:
        settings = find_client_settings()
    except typer.BadParameter as error:
        yield unwell("credential", error.message, "correct the setting")
        return
    except SetUpError as error:
        yield _without_credential(error)
    try:
        url = settings.url if settings else checked_url(setting("URL") or "")
    except (ValueError, typer.BadParameter):
        return
    yield from _look_at(url)
    if settings is not None:
        yield credential_finding(settings)


def _without_credential(error: SetUpError) -> Finding:
    try:
        find_admin_settings()
    except (SetUpError, typer.BadParameter):
        return unwell("credential", str(error), "run `tollkeeper login`, or `tollkeeper dev` here")
    return well("credential", "none of a client: only the administrator's side is looked at")


def _look_at(url: str) -> Iterator[Finding]:
    asked_at = time.time()
    try:
        with open_gateway(url, None, _PATIENCE_S) as client:
            response = client.get("/health/ready")
    except CallError as error:
        yield unwell(
            "gateway", str(error), "start it, or correct TOLLKEEPER_URL or the profile's URL"
        )
        return
    yield readiness_finding(url, response.status_code, json_of(response.text))
    yield clock_finding(response.headers.get("date", ""), (asked_at + time.time()) / 2)


def readiness_finding(url: str, status: int, body: object) -> Finding:
    """Tell whether a gateway takes requests, from what its readiness path answered."""
    match body:
        case {"status": str(), "configuration": {**configuration}, **rest}:
            faults = list(_faults(configuration, rest))
            if faults:
                return unwell(
                    "gateway",
                    f"{url} is not ready: {'; '.join(faults)}",
                    "look at its log, its Redis and its control plane",
                )
            if status == _OK:
                return well("gateway", f"{url} is ready{_standing(configuration, rest)}")
    return unwell(
        "gateway",
        f"what answers at {url} is no gateway that is ready: HTTP {status}",
        "correct TOLLKEEPER_URL or the profile's URL",
    )


def _standing(configuration: Mapping[object, object], rest: Mapping[object, object]) -> str:
    match configuration, rest:
        case {"revision": int(revision), "age_ms": int(age_ms)}, {"unreported_records": int(count)}:
            return (
                f": configuration {revision}, applied {age_ms // 1000} s ago; "
                f"{count} records to report"
            )
    return ""


def _faults(configuration: Mapping[object, object], rest: Mapping[object, object]) -> Iterator[str]:
    if "error" in configuration:
        yield f"no configuration is applied ({configuration['error']})"
    if rest.get("limits") == "open":
        yield "its counters in Redis cannot be read"
    if rest.get("draining"):
        yield "it is draining"


def clock_finding(date: str, now_s: float) -> Finding:
    """Tell how far this machine's clock is from the gateway's, at most 5 s being well.

    Args:
        date: The `date` header of its answer; empty when it had none.
        now_s: This machine's time when the answer was on its way, in Unix seconds.
    """
    try:
        # The header is cut to whole seconds: the middle of that second is meant.
        skew_s = now_s - (parsedate_to_datetime(date).timestamp() + 0.5)
    except ValueError:
        return well("clock", "the gateway does not say what time it is")
    if abs(skew_s) <= _MOST_SKEW_S:
        return well("clock", "this machine's clock agrees with the gateway's")
    return unwell(
        "clock",
        f"this machine's clock is {abs(skew_s):.0f} s {'ahead of' if skew_s > 0 else 'behind'} "
        "the gateway's",
        "set it by NTP: times of resets and suspensions mislead, and TLS may fail",
    )


def credential_finding(settings: ClientSettings) -> Finding:
    """Tell whether the gateway accepts the credential, and for how many models."""
    try:
        with open_gateway(settings.url, settings.credential, _PATIENCE_S) as client:
            listing = answered(client.get("/v1/models"))
    except CallError as error:
        return unwell("credential", f"{error} (from {settings.source})", _advice(error, settings))
    match listing:
        case {"data": [_, *_] as models}:
            models_of = f"{len(models)} model{'' if len(models) == 1 else 's'}"
            return well("credential", f"accepted, from {settings.source}: {models_of}")
        case {"data": []}:
            return unwell(
                "credential",
                "accepted, but it may use no model that can be named",
                "look at its router's rules, at the prices, and at the providers' credentials",
            )
    return unwell("credential", "the list of models is none", "correct TOLLKEEPER_URL")


def _advice(error: CallError, settings: ClientSettings) -> str:
    credential = settings.credential
    if error.code == "device_not_approved" and isinstance(credential, DeviceCredential):
        if error.details.get("status") == "revoked":
            return "run `tollkeeper login --device`, which registers this machine anew"
        return f"ask an operator to run `{approval_command(credential.device_id)}`"
    if error.status == _UNAUTHORIZED:
        return "run `tollkeeper login`, or correct TOLLKEEPER_API_KEY"
    if error.status is None:
        return "start the gateway, or correct its URL"
    return "ask an operator"
