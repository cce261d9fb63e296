"""Which addresses the gateway may call: public ones, and private ones that the operator named.

Literals are checked before the call, names by the resolver under the connector, whose answer is
what is connected to: a name cannot point elsewhere between the check and the call.
"""

import socket
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Final

from aiohttp.abc import AbstractResolver, ResolveResult

# Addresses that stand for others, private ones too, and special ones that not every Python counts
# as such (RFC 4291, 6052, 6890, 7526, 8215): no provider is reached by them.
_NOBODYS: Final = tuple(
    ip_network(each)
    for each in (
        "192.0.0.0/24",
        "192.88.99.0/24",
        "::/96",
        "::ffff:0:0:0/96",
        "64:ff9b::/96",
        "64:ff9b:1::/48",
        "2002::/16",
        "fec0::/10",
    )
)


class AddressForbiddenError(OSError):
    """The upstream's address is not one that this gateway may call."""


class AllowedAddresses:
    """Public addresses, and the networks of `private` (CIDRs)."""

    def __init__(self, private: Iterable[str] = ()) -> None:
        self._private: tuple[IPv4Network | IPv6Network, ...] = tuple(
            ip_network(each, strict=False) for each in private
        )

    def has(self, address: str) -> bool:
        """Return whether `address`, in its text form, may be called."""
        parsed: IPv4Address | IPv6Address = ip_address(address.partition("%")[0])
        if isinstance(parsed, IPv6Address) and parsed.ipv4_mapped is not None:
            parsed = parsed.ipv4_mapped
        if any(parsed in network for network in self._private):
            return True
        if any(parsed in network for network in _NOBODYS):
            return False
        return parsed.is_global and not parsed.is_multicast

    def check_host(self, host: str) -> None:
        """Refuse a literal address that may not be called; names pass, the resolver checks them.

        Raises:
            AddressForbiddenError: `host` is such an address.
        """
        try:
            ip_address(host.partition("%")[0])
        except ValueError:
            return
        if not self.has(host):
            raise AddressForbiddenError("the provider's address is not allowed")


class CheckingResolver(AbstractResolver):
    """Resolves by `inner` and keeps the addresses that may be called."""

    def __init__(self, inner: AbstractResolver, allowed: AllowedAddresses) -> None:
        self._inner = inner
        self._allowed = allowed

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """Return the allowed addresses of `host`.

        Raises:
            AddressForbiddenError: It has none.
        """
        found = await self._inner.resolve(host, port, family)
        kept = [each for each in found if self._allowed.has(each["host"])]
        if not kept:
            raise AddressForbiddenError("the provider's name has no address that is allowed")
        return kept

    async def close(self) -> None:
        """Close the resolver below."""
        await self._inner.close()
