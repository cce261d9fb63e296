"""Errors as callers meet them: a domain error becomes a status with details, anything else INTERNAL and a log line.

Details are those of `google.rpc`: ErrorInfo (domain `tollkeeper`, reason of the closed set) always, BadRequest where
fields are wrong, PreconditionFailure where others refer to what was to be deleted, RetryInfo where waiting helps.
"""

import traceback
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final, NoReturn

import grpc
import structlog
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc import error_details_pb2  # type: ignore[import-untyped]  # has none
from google.rpc.status_pb2 import Status  # type: ignore[import-untyped]  # has none

from controlplane.domain.errors import (
    DomainError,
    ErrorReason,
    ExhaustedError,
    OverloadedError,
    PreconditionError,
    StaleError,
    StillReferencedError,
)
from controlplane.rpc.interception import Context, Surroundings

ERROR_DOMAIN: Final = "tollkeeper"
# The name that gRPC gives to rich errors in trailing metadata.
STATUS_HEADER: Final = "grpc-status-details-bin"

_INVALID: Final = grpc.StatusCode.INVALID_ARGUMENT
_FAILED_PRECONDITION: Final = grpc.StatusCode.FAILED_PRECONDITION
_NOT_FOUND: Final = grpc.StatusCode.NOT_FOUND
_DENIED: Final = grpc.StatusCode.PERMISSION_DENIED
_EXHAUSTED: Final = grpc.StatusCode.RESOURCE_EXHAUSTED
_UNAVAILABLE: Final = grpc.StatusCode.UNAVAILABLE

STATUS_OF_REASON: Final[dict[ErrorReason, grpc.StatusCode]] = {
    ErrorReason.UNSPECIFIED: grpc.StatusCode.UNKNOWN,
    ErrorReason.INVALID_REQUEST: _INVALID,
    ErrorReason.UNSUPPORTED_PARAMETER: _INVALID,
    ErrorReason.REQUEST_TOO_LARGE_FOR_LIMIT: _INVALID,
    ErrorReason.MODEL_NOT_PRICED: _FAILED_PRECONDITION,
    ErrorReason.CONTEXT_LENGTH_EXCEEDED: _INVALID,
    ErrorReason.DUPLICATE_CREDENTIALS: _INVALID,
    ErrorReason.INVALID_API_KEY: grpc.StatusCode.UNAUTHENTICATED,
    ErrorReason.MISSING_CREDENTIALS: grpc.StatusCode.UNAUTHENTICATED,
    ErrorReason.DEVICE_NOT_APPROVED: _DENIED,
    ErrorReason.DEVICE_SUSPENDED: _DENIED,
    ErrorReason.USER_SUSPENDED: _DENIED,
    ErrorReason.ORGANIZATION_PAUSED: _DENIED,
    ErrorReason.MODEL_NOT_ALLOWED: _DENIED,
    ErrorReason.IP_NOT_ALLOWED: _DENIED,
    ErrorReason.NO_ROUTE: _DENIED,
    ErrorReason.PERMISSION_DENIED: _DENIED,
    ErrorReason.CONFLICT: grpc.StatusCode.ALREADY_EXISTS,
    ErrorReason.DEVICE_ALREADY_REGISTERED: grpc.StatusCode.ALREADY_EXISTS,
    ErrorReason.STILL_REFERENCED: _FAILED_PRECONDITION,
    ErrorReason.SCHEMA_MISMATCH: _INVALID,
    ErrorReason.INTERNAL: grpc.StatusCode.INTERNAL,
    ErrorReason.MODEL_NOT_FOUND: _NOT_FOUND,
    ErrorReason.NOT_FOUND: _NOT_FOUND,
    ErrorReason.METHOD_NOT_ALLOWED: grpc.StatusCode.UNIMPLEMENTED,
    ErrorReason.REQUEST_TOO_LARGE: _INVALID,
    ErrorReason.UNSUPPORTED_MEDIA_TYPE: _INVALID,
    ErrorReason.RATE_LIMIT_EXCEEDED: _EXHAUSTED,
    ErrorReason.TOO_MANY_PARALLEL_REQUESTS: _EXHAUSTED,
    ErrorReason.INSUFFICIENT_QUOTA: _EXHAUSTED,
    ErrorReason.UPSTREAM_ERROR: _UNAVAILABLE,
    ErrorReason.UPSTREAM_AUTH: _UNAVAILABLE,
    ErrorReason.UPSTREAM_INVALID_RESPONSE: _UNAVAILABLE,
    ErrorReason.UPSTREAM_TIMEOUT: grpc.StatusCode.DEADLINE_EXCEEDED,
    ErrorReason.BUDGET_PAUSED: _EXHAUSTED,
    ErrorReason.LIMITS_UNAVAILABLE: _UNAVAILABLE,
    ErrorReason.CONFIGURATION_UNAVAILABLE: _UNAVAILABLE,
    ErrorReason.CONTROL_PLANE_UNAVAILABLE: _UNAVAILABLE,
    ErrorReason.PROVIDER_QUOTA_EXHAUSTED: _EXHAUSTED,
    ErrorReason.OVERLOADED: _UNAVAILABLE,
    ErrorReason.USAGE_BACKLOG: _UNAVAILABLE,
    ErrorReason.DRAINING: _UNAVAILABLE,
}

_log: Final = structlog.get_logger(__name__)


def status_of(error: DomainError) -> grpc.StatusCode:
    """Return the status of an error: by its reason, but for two that say more than their reason does."""
    if isinstance(error, StaleError):
        return grpc.StatusCode.ABORTED
    if isinstance(error, PreconditionError):
        return _FAILED_PRECONDITION
    return STATUS_OF_REASON[error.reason]


def rich_status(error: DomainError) -> Status:
    """Return the error as a `google.rpc.Status`, with everything that a program may want to know."""
    code: Any = status_of(error).value[0]  # Any: the stubs do not know the pair's types
    status = Status(code=code, message=error.detail)
    for detail in _details(error):
        packed = AnyMessage()
        packed.Pack(detail)
        status.details.append(packed)
    return status


def _details(error: DomainError) -> list[Message]:
    metadata = {"field": error.field} if error.field else {}
    details: list[Message] = [
        error_details_pb2.ErrorInfo(
            reason=error.reason.name, domain=ERROR_DOMAIN, metadata=metadata
        )
    ]
    violations = getattr(error, "violations", ())
    if not violations and error.field and status_of(error) is _INVALID:
        violations = ((error.field, error.detail),)
    if violations:
        details.append(
            error_details_pb2.BadRequest(
                field_violations=[
                    error_details_pb2.BadRequest.FieldViolation(field=field, description=text)
                    for field, text in violations
                ]
            )
        )
    if isinstance(error, StillReferencedError):
        details.append(
            error_details_pb2.PreconditionFailure(
                violations=[
                    error_details_pb2.PreconditionFailure.Violation(
                        type=error.reason.name, subject=referrer
                    )
                    for referrer in error.referrers[: error.MAX_NAMED]
                ]
            )
        )
    if isinstance(error, ExhaustedError):
        delay = Duration()
        delay.FromTimedelta(error.retry_after)
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    return details


def error_edge(method: str) -> Surroundings:
    """Return the outermost edge of one method's calls: nothing but a status leaves it."""

    @asynccontextmanager
    async def edge(_request: Any, context: Context) -> AsyncIterator[None]:
        try:
            yield
        except DomainError as error:
            await _end(context, error)
        except TimeoutError:
            await _end(context, OverloadedError("this took too long; try again later"))
        except grpc.aio.AbortError:
            raise
        except Exception as error:  # the outermost edge: logged, and told without its text
            _log.error("call_failed", method=method, **_shape_of(error))
            await _end(context, DomainError("internal error; see the log"))

    return edge


def _shape_of(error: Exception) -> dict[str, Any]:  # Any: fields of a log line
    """Return where and of which types an error is, without its text, which may hold what the request held."""
    kinds = []
    cause: BaseException | None = error
    while cause is not None:
        kinds.append(type(cause).__qualname__)
        cause = cause.__cause__
    frames = traceback.extract_tb(error.__traceback__)
    return {
        "errors": kinds,
        "frames": [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames],
    }


async def _end(context: Context, error: DomainError) -> NoReturn:
    status = rich_status(error)
    await context.abort(
        status_of(error), error.detail, ((STATUS_HEADER, status.SerializeToString()),)
    )
    raise AssertionError("abort always raises")
