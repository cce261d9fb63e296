"""Connections to control planes: in clear on loopback only."""

from ipaddress import ip_address
from typing import Final

import grpc

MAX_MESSAGE_BYTES: Final = 4 * 1024 * 1024
_OPTIONS: Final = (
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.enable_retries", 0),
    # A proxy of the environment would carry the node's token to another host.
    ("grpc.enable_http_proxy", 0),
    # Reconnecting is the caller's business, with its own back-off; grpc's grows to two minutes.
    ("grpc.max_reconnect_backoff_ms", 1_000),
)


def check_address(address: str) -> None:
    """Refuse an address that a token must not travel to in clear.

    Raises:
        ValueError: It is not on loopback; TLS between the planes is not there yet.
    """
    host = address.rpartition(":")[0].strip("[]")
    try:
        is_local = host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        is_local = False
    if not is_local:
        raise ValueError(f"control plane {address}: only loopback is allowed without TLS")


def channel_to(address: str) -> grpc.aio.Channel:
    """Return a channel to the control plane at `address`.

    Raises:
        ValueError: See `check_address`.
    """
    check_address(address)
    return grpc.aio.insecure_channel(address, options=_OPTIONS)
