"""`POST /v1/devices/register` and `GET /v1/devices/me`: the way in for applications without a key."""

import os
from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

from dataplane.domain.authentication import device_status, presented_device
from dataplane.domain.calls import Dialect
from dataplane.domain.credentials import (
    DEVICE_ID_HEADER,
    SESSION_TOKEN_HEADER,
    parse_credentials,
    unknown_device,
)
from dataplane.domain.guards import Check
from dataplane.domain.instants import instant_text
from dataplane.domain.limiting import LimitsUnavailable
from dataplane.domain.principals import Device, DeviceStatus
from dataplane.domain.refusals import Reason, Refusal
from dataplane.domain.registration import MAX_BODY_BYTES, registration_of
from dataplane.domain.snapshot import Snapshot
from dataplane.http.device_desk import DeviceDesk, Guards, Registered, note_device
from dataplane.http.errors import refused
from dataplane.http.exchange import JSON_TYPE, HttpAnswer, HttpRequest
from dataplane.http.reading import check_length

_CREATED: Final = 201
# An answer may hold a credential, and a status is asked for to see it change.
_NO_STORE: Final = (("cache-control", "no-store"),)
_UNAVAILABLE_RETRY_SECONDS: Final = 5
_DRAINING_RETRY_SECONDS: Final = 1
_JITTER: Final = 0.03
# A device that may call, or may still come to, has what it asks for.
_REGISTERED: Final[Mapping[DeviceStatus, str]] = {
    DeviceStatus.PENDING_APPROVAL: "it waits for approval",
    DeviceStatus.APPROVED: "it is approved",
    DeviceStatus.SUSPENDED: "it is suspended for a while",
}


async def register_device(desk: DeviceDesk, request: HttpRequest) -> HttpAnswer:
    """Answer 201 with a new device's credential; it never raises a `Refusal`.

    Whoever asks is not known. What costs nobody anything is refused first: a body that is too
    large or none of ours, a device that is registered already, an address that asks too often.
    """
    request_id = desk.pipeline.new_request_id()
    try:
        body = await _register(desk, request)
    except Refusal as refusal:
        return refused(refusal, Dialect.OPENAI, request_id, _NO_STORE)
    return _answer(_CREATED, body, request_id)


def my_device(desk: DeviceDesk, request: HttpRequest) -> HttpAnswer:
    """Answer with the status of the device whose id and token stand in the headers, whatever it is."""
    request_id = desk.pipeline.new_request_id()
    try:
        snapshot, now_ms = desk.pipeline.current.get(), desk.pipeline.clock_ms()
        device = _proven_device(snapshot, request.headers)
    except Refusal as refusal:
        return refused(refusal, Dialect.OPENAI, request_id, _NO_STORE)
    note_device(desk.sightings, device.device_id, request, now_ms)
    return _answer(200, _shown(snapshot, device, now_ms), request_id)


async def _register(desk: DeviceDesk, request: HttpRequest) -> dict[str, object]:
    pipeline, headers = desk.pipeline, request.headers
    if pipeline.is_draining:
        raise Refusal(
            Reason.DRAINING,
            "This proxy is shutting down.",
            retry_after_seconds=_DRAINING_RETRY_SECONDS,
        )
    check_length(headers, MAX_BODY_BYTES)
    _check_content_type(headers)
    registration = registration_of(request.body, request.address, headers.get("user-agent", ""))
    snapshot, now_ms = pipeline.current.get(), pipeline.clock_ms()
    known = presented_device(snapshot, headers)
    if known is not None:
        note_device(desk.sightings, known.device_id, request, now_ms)
        _refuse_registered(snapshot, known, now_ms)
    await _pass(desk.guards, registration.checks(), now_ms)
    registered = await desk.enrollment.register(registration)
    return _registered(registered, snapshot.service.support_url)


def _check_content_type(headers: Mapping[str, str]) -> None:
    """Refuse all but JSON, and also what is silent about it.

    A page of any site may make a browser send a body without a type, and so use up the throttle of
    its visitors' address; to say JSON it would have to ask first.
    """
    content_type = headers.get("content-type", "").partition(";")[0]
    if content_type.strip().lower() != JSON_TYPE:
        raise Refusal(Reason.UNSUPPORTED_MEDIA_TYPE, "The body must be application/json.")


def _refuse_registered(snapshot: Snapshot, device: Device, now_ms: int) -> None:
    status = device_status(snapshot, device, now_ms)
    standing = _REGISTERED.get(status)
    if standing is not None:
        raise Refusal(
            Reason.DEVICE_ALREADY_REGISTERED,
            f"This device is registered already, and {standing}: keep its id and session token.",
            details={"deviceId": device.device_id, "status": status.value},
        )


async def _pass(guards: Guards, checks: Sequence[Check], now_ms: int) -> None:
    """Count a registration, or refuse it.

    Raises:
        Refusal: RATE_LIMIT_EXCEEDED, LIMITS_UNAVAILABLE.
    """
    try:
        verdict = await guards.admit(checks)
    except LimitsUnavailable as error:
        raise Refusal(
            Reason.LIMITS_UNAVAILABLE,
            "Limits cannot be checked right now.",
            retry_after_seconds=_UNAVAILABLE_RETRY_SECONDS,
        ) from error
    if verdict.binding is None:
        return
    layer = verdict.binding.guard.name
    seconds = -(-verdict.retry_after_ms // 1000)
    # Whoever was refused together need not come back together.
    spread = int(seconds * _JITTER * os.urandom(1)[0] / 256)
    raise Refusal(
        Reason.RATE_LIMIT_EXCEEDED,
        f"The limit is reached: {layer}.",
        details={"layer": layer, "resets_at": instant_text(now_ms + verdict.retry_after_ms)},
        retry_after_seconds=seconds + spread,
    )


def _registered(registered: Registered, support_url: str) -> dict[str, object]:
    message = (
        "This device waits for an administrator to approve it; until then its calls are refused."
        " Keep the session token, which is shown this once, and ask GET /v1/devices/me how it stands."
    )
    body: dict[str, object] = {
        "deviceId": registered.device_id,
        "sessionToken": registered.session_token,
        "status": registered.status.value,
        "message": f"{message} Help: {support_url}" if support_url else message,
    }
    if support_url:
        body["supportUrl"] = support_url
    return body


def _proven_device(snapshot: Snapshot, headers: Mapping[str, str]) -> Device:
    """Return the device whose id and token stand in `headers`.

    Raises:
        Refusal: MISSING_CREDENTIALS, DUPLICATE_CREDENTIALS, INVALID_API_KEY.
    """
    if not parse_credentials(headers).device_id:
        raise Refusal(
            Reason.MISSING_CREDENTIALS,
            "A key is no device: send X-Device-ID and X-Session-Token.",
            details={"headers": [DEVICE_ID_HEADER, SESSION_TOKEN_HEADER]},
        )
    device = presented_device(snapshot, headers)
    if device is None:
        raise unknown_device()
    return device


def _shown(snapshot: Snapshot, device: Device, now_ms: int) -> dict[str, object]:
    status = device_status(snapshot, device, now_ms)
    body: dict[str, object] = {
        "deviceId": device.device_id,
        "deviceName": device.name,
        "status": status.value,
    }
    principal = device.principal
    if principal is not None:
        body["user"] = principal.user.name
        body["organization"] = principal.user.organization.name
        if principal.tier:
            body["tier"] = principal.tier
    if status is DeviceStatus.SUSPENDED:
        if device.suspended_until_ms is not None:
            body["suspendedUntil"] = instant_text(device.suspended_until_ms)
        if device.suspension_reason:
            body["suspensionReason"] = device.suspension_reason
    return body


def _answer(status: int, body: dict[str, object], request_id: str) -> HttpAnswer:
    headers = (
        ("content-type", JSON_TYPE),
        ("x-request-id", request_id),
        ("request-id", request_id),
        *_NO_STORE,
    )
    return HttpAnswer(status, headers, msgspec.json.encode(body))
