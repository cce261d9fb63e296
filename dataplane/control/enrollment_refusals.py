"""From a registration that failed to the refusal that its caller can act on."""

from collections.abc import Sequence
from typing import Final

import grpc
import grpc.aio
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import DecodeError
from google.rpc.error_details_pb2 import (  # type: ignore[import-untyped]  # has none
    BadRequest,
    RetryInfo,
)
from grpc_status import rpc_status  # type: ignore[import-untyped]  # has none

from dataplane.domain.refusals import Reason, Refusal

# The layer that refuses where the control plane has as many devices as may wait.
PENDING_LAYER: Final = "pending_devices"

_RETRY_SECONDS: Final = 5
# A device waits for a person; where the control plane does not say for how long, a minute.
_PENDING_RETRY_SECONDS: Final = 60
_MAX_RETRY_SECONDS: Final = 86_400
# What the caller wrote, by its name in the contract; other fields are ours.
_PARAMS: Final = {"device_name": "deviceName", "platform": "platform", "version": "version"}


def refusal_for(error: grpc.aio.AioRpcError) -> Refusal:
    """Return what the caller is told of a registration that failed."""
    code = error.code()
    details = _details_of(error)
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
        return Refusal(
            Reason.RATE_LIMIT_EXCEEDED,
            "Too many devices wait for approval.",
            details={"layer": PENDING_LAYER},
            retry_after_seconds=_retry_seconds(details),
        )
    if code is grpc.StatusCode.INVALID_ARGUMENT:
        return _invalid(details)
    return unavailable()


def _invalid(details: Sequence[AnyMessage]) -> Refusal:
    violations = BadRequest()
    for each in details:
        if each.Unpack(violations):
            break
    for violation in violations.field_violations:
        param = _PARAMS.get(violation.field)
        if param is not None:
            return Refusal(Reason.INVALID_REQUEST, f"The field {param} is not valid.", param=param)
    return Refusal(Reason.INVALID_REQUEST, "This registration is not valid.")


def _retry_seconds(details: Sequence[AnyMessage]) -> int:
    retry = RetryInfo()
    for each in details:
        if each.Unpack(retry):
            delay = retry.retry_delay
            seconds: int = delay.seconds + (delay.nanos > 0)
            return min(max(1, seconds), _MAX_RETRY_SECONDS)
    return _PENDING_RETRY_SECONDS


def _details_of(error: grpc.aio.AioRpcError) -> Sequence[AnyMessage]:
    try:
        status = rpc_status.from_call(error)
    except (ValueError, DecodeError):
        # Details that contradict the status, or are none, as a proxy in between may leave them.
        return ()
    return () if status is None else tuple(status.details)


def unavailable() -> Refusal:
    """Return the refusal of a registration that the control plane cannot be asked for."""
    return Refusal(
        Reason.CONTROL_PLANE_UNAVAILABLE,
        "Devices cannot be registered right now.",
        retry_after_seconds=_RETRY_SECONDS,
    )
