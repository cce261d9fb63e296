"""How a node joins with a token, and renews its certificate at half its life."""

import asyncio
import random
from collections.abc import Callable, Sequence
from datetime import UTC
from typing import Final

import grpc
import grpc.aio
import structlog
from google.protobuf.timestamp_pb2 import Timestamp
from tollkeeper.enrollment.v1 import node_enrollment_service_pb2 as pb
from tollkeeper.enrollment.v1 import node_enrollment_service_pb2_grpc as pb_grpc

from dataplane.control.channels import TlsChannels, secure_channel
from dataplane.control.identity import (
    CONTROL_PLANE_NAME,
    Identity,
    IdentityError,
    IdentityFile,
    KeyRequest,
    check_authority,
    check_pair,
    pem_of,
    span_ms_of,
)
from dataplane.domain.join_tokens import JoinToken

# A control plane that starts beside this node is there by then.
JOIN_DEADLINE_S: Final = 60.0
CALL_DEADLINE_S: Final = 10.0
_JOIN_PAUSE_S: Final = 1.0

# Nodes that joined together do not renew together.
_HALF: Final = (0.5, 0.6)
_RETRIES_PER_LIFE: Final = 288
_LONGEST_SLEEP_S: Final = 300.0
# From then on it is an error that somebody must look at.
_ALARMING_SHARE: Final = 0.25

# Another control plane, or the same one a moment later, may say otherwise.
_AWAY: Final = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.ABORTED,
)

_log: Final = structlog.get_logger(__name__)


async def join(
    token: JoinToken,
    node_id: str,
    request: KeyRequest,
    clock_ms: Callable[[], int],
    deadline_s: float = JOIN_DEADLINE_S,
) -> Identity:
    """Exchange a join token for a certificate; control planes that are away are tried again until the deadline.

    Raises:
        IdentityError: The token is not taken, or no control plane of its authority was reached.
    """
    authority_pem = pem_of(token.authority_der)
    message = pb.EnrollNodeRequest(
        token_secret=token.secret, node_id=node_id, certificate_request=request.request_der
    )
    loop = asyncio.get_running_loop()
    ends_at_s = loop.time() + deadline_s
    while True:
        for address in token.addresses:
            try:
                async with secure_channel(address, authority_pem, CONTROL_PLANE_NAME) as channel:
                    response = await pb_grpc.NodeEnrollmentServiceStub(channel).EnrollNode(
                        message, timeout=CALL_DEADLINE_S
                    )
            except grpc.aio.AioRpcError as error:
                if error.code() not in _AWAY:
                    raise IdentityError(
                        f"the control plane at {address} does not let {node_id} join: {error.details()}"
                    ) from None
                _log.warning("join_failed", address=address, code=error.code().name)
                continue
            return _identity(node_id, request, response, clock_ms())
        if loop.time() >= ends_at_s:
            addresses = ", ".join(token.addresses)
            raise IdentityError(
                f"cannot join: no control plane that the join token knows answers at {addresses}"
            )
        await asyncio.sleep(_JOIN_PAUSE_S)


class Renewal:
    """Renews the certificate of a node as long as it runs."""

    def __init__(
        self,
        channels: TlsChannels,
        addresses: Sequence[str],
        file: IdentityFile,
        clock_ms: Callable[[], int],
        uniform: Callable[[float, float], float] = random.uniform,
    ) -> None:
        """Prepare.

        Args:
            channels: Have the certificate, and get each new one.
            addresses: Control planes, as nodes call them.
            file: Keeps each new one.
            clock_ms: Unix milliseconds.
            uniform: A random number between two.
        """
        self._channels = channels
        self._addresses = tuple(addresses)
        self._file = file
        self._clock_ms = clock_ms
        self._uniform = uniform

    async def run(self) -> None:
        """Renew at half life, and every few minutes after that until it works; until cancelled.

        The clock of this host need not be that of the control planes. One that is behind makes the life that is left look
        longer than it ever is; by one that is ahead a new certificate may have ended, and must not be renewed without end.
        """
        while True:
            own = self._channels.identity
            span_ms = span_ms_of(own.chain_pem)
            life_ms = min(own.lifetime_ms, span_ms)
            await self._sleep_until(own.issued_at_ms + life_ms * self._uniform(*_HALF))
            is_renewed = False
            while not is_renewed:
                is_renewed = await self._renewed()
                pause_s = span_ms / 1000 / _RETRIES_PER_LIFE
                await asyncio.sleep(pause_s * self._uniform(0.5, 1.5))

    async def _sleep_until(self, due_ms: float) -> None:
        """Sleep in parts: a host that was suspended meanwhile must not be late by all of that time."""
        left_ms = due_ms - self._clock_ms()
        while left_ms > 0:
            await asyncio.sleep(min(left_ms / 1000, _LONGEST_SLEEP_S))
            left_ms = due_ms - self._clock_ms()

    async def _renewed(self) -> bool:
        own, reason = self._channels.identity, "no control plane"
        request = KeyRequest.make(own.node_id, own.token_sha256)
        for address in self._addresses:
            try:
                renewed = await self._renewed_at(address, request)
                self._channels.replace(renewed)
                # A disk that does not take it costs the next start its identity, not this process.
                await asyncio.to_thread(self._file.write, renewed)
            except grpc.aio.AioRpcError as error:
                reason = f"{error.code().name}: {error.details()}"
            except OSError as error:
                _log.error("certificate_not_kept", error=error.strerror)
                return True
            except Exception as error:  # task boundary: without it the certificate would end unseen
                reason = type(error).__name__
                _log.exception("certificate_renewal_failed", address=address)
            else:
                _log.info("certificate_renewed", expires_at_ms=renewed.expires_at_ms)
                return True
        self._complain(own, reason)
        return False

    async def _renewed_at(self, address: str, request: KeyRequest) -> Identity:
        own = self._channels.identity
        async with self._channels.to(address) as channel:
            response = await pb_grpc.NodeEnrollmentServiceStub(channel).RenewNode(
                pb.RenewNodeRequest(certificate_request=request.request_der),
                timeout=CALL_DEADLINE_S,
            )
        return _identity(own.node_id, request, response, self._clock_ms())

    def _complain(self, own: Identity, reason: str) -> None:
        left_ms = own.expires_at_ms - self._clock_ms()
        if left_ms <= 0:
            _log.error(
                "certificate_expired",
                reason=reason,
                effect="no control plane lets this node in; it serves what it has",
                remedy="start it with a new join token",
            )
        elif left_ms < own.lifetime_ms * _ALARMING_SHARE:
            _log.error("certificate_ends_soon", seconds_left=left_ms // 1000, reason=reason)
        else:
            _log.warning("certificate_not_renewed", seconds_left=left_ms // 1000, reason=reason)


def _identity(
    node_id: str,
    request: KeyRequest,
    response: pb.EnrollNodeResponse | pb.RenewNodeResponse,
    now_ms: int,
) -> Identity:
    """Return what a control plane answered, with the key that it answered to.

    Raises:
        IdentityError: It is no certificate of that key, or comes without an authority.
    """
    chain_pem, authority_pem = response.certificate_chain.encode(), response.authority.encode()
    check_pair(chain_pem, request.key_pem)
    check_authority(authority_pem)
    return Identity(
        node_id=node_id,
        chain_pem=chain_pem,
        key_pem=request.key_pem,
        authority_pem=authority_pem,
        issued_at_ms=now_ms,
        expires_at_ms=_unix_ms(response.expires_at),
        token_sha256=request.token_sha256,
    )


def _unix_ms(instant: Timestamp) -> int:
    return round(instant.ToDatetime(UTC).timestamp() * 1000)
