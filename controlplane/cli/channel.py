"""The gRPC channel to a control plane: credentials, deadlines, and what a failure means in words."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final, NamedTuple

# The library would write lines of its own to stderr, where one sentence belongs. It reads this once, when imported.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

import grpc

from controlplane.cli.connection import AdminSettings, is_loopback
from controlplane.cli.output import fail
from controlplane.cli.waiting import current_waiting

DEADLINE_S: Final = 10.0
# Pages of long rules and records; the library's own bound is 4 MiB.
_MOST_RECEIVED_BYTES: Final = 64 * 1024 * 1024


class ControlPlaneError(Exception):
    """A control plane refused a call or could not be asked; the text is a sentence for the user."""


class _CallDetails(NamedTuple):
    """What gRPC wants to know about a call, as a value that may be changed."""

    method: str
    timeout: float | None
    metadata: tuple[tuple[str, str | bytes], ...] | None
    credentials: grpc.CallCredentials | None
    wait_for_ready: bool | None
    compression: grpc.Compression | None


class _Caller(grpc.UnaryUnaryClientInterceptor):
    """Presents the token with every call and bounds those that have no deadline of their own.

    It also has changes wait for the data planes, where the command was told to.
    """

    def __init__(self, token: str) -> None:
        self._authorization = ("authorization", f"Bearer {token}")

    def intercept_unary_unary(
        self,
        continuation: Callable[..., Any],  # gRPC types neither what it hands in nor what it returns
        client_call_details: grpc.ClientCallDetails,
        request: object,
    ) -> Any:  # gRPC: a call that is a future of the answer
        waiting = current_waiting()
        wait_s = waiting.ask(request).total_seconds() if waiting else 0.0
        details = _CallDetails(
            method=client_call_details.method,
            timeout=(client_call_details.timeout or DEADLINE_S) + wait_s,
            metadata=(*(client_call_details.metadata or ()), self._authorization),
            credentials=client_call_details.credentials,
            wait_for_ready=client_call_details.wait_for_ready,
            compression=client_call_details.compression,
        )
        call = continuation(details, request)
        # What failed has a code as well, and is raised where the answer is asked for.
        if waiting and call.code() is grpc.StatusCode.OK:
            waiting.hear(call.result())
        return call


@contextmanager
def open_channel(settings: AdminSettings) -> Iterator[grpc.Channel]:
    """Open a channel for one command; failed calls inside the block end the program with exit code 1."""
    try:
        with connected(settings) as channel:
            yield channel
    except ControlPlaneError as error:
        fail(str(error))


@contextmanager
def connected(settings: AdminSettings) -> Iterator[grpc.Channel]:
    """Open a channel that authenticates each call and bounds it.

    Raises:
        ControlPlaneError: A call inside the block failed, or no call can be made with these settings.
    """
    with _transport(settings) as channel:
        try:
            yield grpc.intercept_channel(channel, _Caller(settings.token))
        except grpc.RpcError as error:
            raise ControlPlaneError(_explanation(error, settings)) from None


def _transport(settings: AdminSettings) -> grpc.Channel:
    options = [("grpc.max_receive_message_length", _MOST_RECEIVED_BYTES)]
    if settings.ca_path is not None:
        try:
            root = settings.ca_path.read_bytes()
        except OSError as error:
            raise ControlPlaneError(
                f"TOLLKEEPER_CA: {settings.ca_path} cannot be read: {type(error).__name__}"
            ) from None
        name = _name_under(root)
        named = [("grpc.ssl_target_name_override", name)] if name else []
        return grpc.secure_channel(
            str(settings.address), grpc.ssl_channel_credentials(root), [*options, *named]
        )
    if not is_loopback(settings.address.host):
        raise ControlPlaneError(
            f"the token is not sent in clear to {settings.address}: "
            "set TOLLKEEPER_CA to the root of the control plane's certificate"
        )
    # A proxy of the environment is for the world outside, and would read the token.
    return grpc.insecure_channel(str(settings.address), [*options, ("grpc.enable_http_proxy", 0)])


def _name_under(root: bytes) -> str:
    """Return the one name of control planes under the service's own authority; nothing for any other root."""
    from cryptography import x509

    from controlplane.pki.certificates import SERVER_NAME, is_own_authority

    try:
        return SERVER_NAME if is_own_authority(x509.load_pem_x509_certificate(root)) else ""
    except ValueError:
        return ""


def _explanation(error: grpc.RpcError, settings: AdminSettings) -> str:
    """Return what a failed call means: refused by the control plane, or never answered by it."""
    code = error.code()
    message = error.details() or ""
    reason, fields = _refusal(error)
    if reason is None and code is grpc.StatusCode.UNAVAILABLE:
        return (
            f"cannot reach the control plane at {settings.address} ({message}): is it running, and is "
            "TOLLKEEPER_ADMIN_ADDRESS right"
            + (", and TOLLKEEPER_CA its root?" if settings.ca_path else "?")
        )
    if reason is None and code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return (
            f"the control plane at {settings.address} did not answer in time; "
            "a change may have been made: look before you repeat it"
        )
    suffix = f" (field {', '.join(fields)})" if fields else ""
    return f"refused: {(reason or code.name).lower()}: {message}{suffix}"


def _refusal(error: grpc.RpcError) -> tuple[str | None, list[str]]:
    """Return the reason and the fields that the control plane named, as far as it did."""
    # Loaded only when there is something to explain.
    from google.rpc import error_details_pb2  # type: ignore[import-untyped]  # has none
    from grpc_status import rpc_status  # type: ignore[import-untyped]  # has none

    if not isinstance(error, grpc.Call):
        return None, []
    try:
        status = rpc_status.from_call(error)
    except ValueError:
        # Details that contradict the status, as a proxy in between may leave them.
        return None, []
    reason: str | None = None
    fields: list[str] = []
    for detail in status.details if status is not None else ():
        info = error_details_pb2.ErrorInfo()
        bad_request = error_details_pb2.BadRequest()
        if detail.Unpack(info):
            reason = info.reason
            if info.metadata.get("field"):
                fields.append(info.metadata["field"])
        elif detail.Unpack(bad_request):
            fields.extend(violation.field for violation in bad_request.field_violations)
    return reason, list(dict.fromkeys(fields))
