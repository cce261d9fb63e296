"""Connections to control planes: in clear on loopback, with certificates on both sides everywhere else.

A certificate is exchanged while connections are open: those that there are go on with the one they began with, new ones
take the newest.
"""

import asyncio
from ipaddress import ip_address
from typing import Final, Protocol

import grpc

from dataplane.control.identity import Identity

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
# Longer than any call but streams, which have channels of their own.
_RETIRED_GRACE_S: Final = 30.0


def check_address(address: str) -> None:
    """Refuse an address that a token must not travel to in clear.

    Raises:
        ValueError: It is not on loopback.
    """
    host = address.rpartition(":")[0].strip("[]")
    try:
        is_local = host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        is_local = False
    if not is_local:
        raise ValueError(f"control plane {address}: only loopback is allowed without TLS")


def channel_to(address: str) -> grpc.aio.Channel:
    """Return a channel, in clear, to the control plane at `address`.

    Raises:
        ValueError: See `check_address`.
    """
    check_address(address)
    return grpc.aio.insecure_channel(address, options=_OPTIONS)


def secure_channel(
    address: str,
    authority_pem: bytes,
    server_name: str,
    key_pem: bytes | None = None,
    chain_pem: bytes | None = None,
) -> grpc.aio.Channel:
    """Return a channel to a control plane that `authority_pem` knows; without a key the caller shows no certificate.

    `server_name` is the name that its certificate must have; empty: the host of `address`.
    """
    named = (("grpc.ssl_target_name_override", server_name),) if server_name else ()
    credentials = grpc.ssl_channel_credentials(authority_pem, key_pem, chain_pem)
    return grpc.aio.secure_channel(address, credentials, options=(*_OPTIONS, *named))


class Channels(Protocol):
    """The way of a process to its control planes."""

    @property
    def generation(self) -> int:
        """A number that grows when channels that were opened before should be replaced."""
        ...

    def check(self, address: str) -> None:
        """Refuse an address that cannot be used.

        Raises:
            ValueError: It can not.
        """
        ...

    def to(self, address: str) -> grpc.aio.Channel:
        """Return a new channel, which belongs to the caller.

        Raises:
            ValueError: See `check`.
        """
        ...


class LoopbackChannels:
    """Channels in clear, to loopback only."""

    generation = 0

    def check(self, address: str) -> None:
        """See `check_address`."""
        check_address(address)

    def to(self, address: str) -> grpc.aio.Channel:
        """See `channel_to`."""
        return channel_to(address)


LOOPBACK: Final = LoopbackChannels()


class TlsChannels:
    """Channels with the certificate of a node, which may be exchanged."""

    def __init__(self, identity: Identity) -> None:
        self.generation = 0
        self._identity = identity

    @property
    def identity(self) -> Identity:
        """The newest identity."""
        return self._identity

    def replace(self, identity: Identity) -> None:
        """Open channels with `identity` from now on."""
        self._identity = identity
        self.generation += 1

    def check(self, address: str) -> None:
        """Let every address pass: who does not prove itself there is not talked to."""

    def to(self, address: str) -> grpc.aio.Channel:
        """Return a channel with the newest certificate."""
        own = self._identity
        return secure_channel(
            address, own.authority_pem, own.server_name, own.key_pem, own.chain_pem
        )


class ChannelCache:
    """One channel for each address, opened when it is first needed and replaced with the certificate."""

    def __init__(self, channels: Channels) -> None:
        self._channels = channels
        self._open: dict[str, tuple[int, grpc.aio.Channel]] = {}
        self._retiring: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        return len(self._open)

    def to(self, address: str) -> grpc.aio.Channel:
        """Return the channel to `address`; it belongs to the cache. Calls on the one before may end."""
        generation = self._channels.generation
        known = self._open.get(address)
        if known is not None and known[0] == generation:
            return known[1]
        channel = self._channels.to(address)
        self._open[address] = (generation, channel)
        if known is not None:
            task = asyncio.create_task(known[1].close(_RETIRED_GRACE_S), name="retire-channel")
            self._retiring.add(task)
            task.add_done_callback(self._retiring.discard)
        return channel

    async def aclose(self) -> None:
        """Close all channels; calls that are open fail."""
        for task in self._retiring:
            task.cancel()
        for _, channel in self._open.values():
            await channel.close()


def credentials_of(node_token: str) -> tuple[tuple[str, str], ...]:
    """Return the metadata of a node's calls: the token that nodes share, or nothing where they have certificates."""
    return (("authorization", f"Bearer {node_token}"),) if node_token else ()
