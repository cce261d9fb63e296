"""Whose address a request comes from, also behind proxies, and under which prefix it is counted.

Anybody can write anything into `X-Forwarded-For`; only what a trusted proxy has added to its right
end is worth something. So the header is read only where the peer itself is a trusted proxy, and it
is walked from the right: each entry names who called the hop after it, and is as good as that hop.

    trusted: 10.0.0.0/8      peer: 10.0.0.2
    x-forwarded-for: 6.6.6.6, 203.0.113.9, 10.0.0.1
                     invented  the client  a proxy of ours, which says that 203.0.113.9 called it

The walk ends at the first hop that is not trusted. An entry that is no address ends it one hop
earlier: nobody trusted says who called, so nothing to its left may be believed.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Final

FORWARDED_FOR: Final = "x-forwarded-for"
# Real chains have two or three hops; whoever sends more wants us to work.
MAX_HOPS: Final = 64
# A bracketed IPv6 address with its zone, port and quotes is shorter, and caches keep it.
_MAX_ENTRY_LENGTH: Final = 80
# Addresses that are looked up again and again: peers, proxies and the clients of the moment.
_CACHED: Final = 4096
_MAX_PORT: Final = 65535
_MAPPED_BITS: Final = 96
_PREFIX_BITS: Final = 64


@dataclass(frozen=True, slots=True)
class _Address:
    """One address: its canonical text, and what a network is compared with."""

    text: str
    version: int
    number: int


@lru_cache(maxsize=_CACHED)
def address_prefix(address: str) -> str:
    """Return what an address is counted under, or "" where `address` is none.

    An IPv4 address stands for itself. An IPv6 address stands for its /64, because that is the
    least that one subscriber has: whoever holds it can call from each of its 2^64 addresses.
    """
    value = _value_of(address)
    match value:
        case None:
            return ""
        case IPv4Address():
            return str(value)
        case _:
            return str(IPv6Network((int(value), _PREFIX_BITS), strict=False))


def network_of(text: str) -> IPv4Network | IPv6Network:
    """Return the network, or the one address, that `text` names; IPv4-mapped ones as IPv4.

    Raises:
        ValueError: It names none.
    """
    network = ip_network(text, strict=False)
    if isinstance(network, IPv6Network) and network.prefixlen >= _MAPPED_BITS:
        mapped = network.network_address.ipv4_mapped
        if mapped is not None:
            return IPv4Network((int(mapped), network.prefixlen - _MAPPED_BITS))
    return network


class ClientAddresses:
    """Decides which address is the client's: the peer's, or what a trusted proxy says.

    Args:
        trusted: The proxies: networks (CIDR) or single addresses.
        header: Where they write the address, in any case: `x-forwarded-for`, to which each proxy
            adds its caller, or one that a proxy sets to a single address (`x-real-ip`,
            `cf-connecting-ip`).

    Raises:
        ValueError: One of `trusted` is no network.
    """

    __slots__ = ("_header", "_networks")

    def __init__(self, trusted: Iterable[str], header: str = FORWARDED_FOR) -> None:
        self._header = header.lower()
        networks = [network_of(each) for each in trusted]
        self._networks = tuple(
            (each.version, int(each.network_address), int(each.netmask)) for each in networks
        )

    def of(self, peer: str, headers: Mapping[str, str]) -> str:
        """Return the client's address in canonical text, or "" where the peer has none.

        Args:
            peer: The address at the other end of the connection.
            headers: By lower-case name; a header that came twice is joined by commas.
        """
        nearest = _address_of(peer)
        if nearest is None:
            return ""
        if not self._networks or not self._is_trusted(nearest):
            return nearest.text
        value = headers.get(self._header)
        if value is None:
            return nearest.text
        if self._header == FORWARDED_FOR:
            return self._farthest_known(nearest, value).text
        # The proxy's own value comes last where a client managed to send one along.
        return (_entry(value.rpartition(",")[2]) or nearest).text

    def _farthest_known(self, peer: _Address, value: str) -> _Address:
        hop = peer
        for item in reversed(value.rsplit(",", MAX_HOPS)[-MAX_HOPS:]):
            # Empty elements of a list are ignored (RFC 9110, section 5.6.1.2).
            if not item.strip(" \t"):
                continue
            caller = _entry(item)
            if caller is None:
                return hop
            hop = caller
            if not self._is_trusted(hop):
                return hop
        return hop

    def _is_trusted(self, address: _Address) -> bool:
        # A loop: a generator for each hop costs more than the comparisons.
        for version, network, mask in self._networks:
            if version == address.version and address.number & mask == network:
                return True
        return False


def _entry(item: str) -> _Address | None:
    """Return the address in one entry: bare, or with quotes, brackets, a port or a zone."""
    text = item.strip(" \t")
    if len(text) > _MAX_ENTRY_LENGTH:
        return None
    if len(text) > 1 and text[0] == text[-1] == '"':
        text = text[1:-1].strip(" \t")
    if text.startswith("["):
        host, bracket, port = text[1:].partition("]")
        if not bracket or ":" not in host or (port and not _is_port(port)):
            return None
        return _address_of(host)
    if text.count(":") == 1:
        host, _, port = text.partition(":")
        return _address_of(host) if _is_port(f":{port}") else None
    return _address_of(text)


def _is_port(text: str) -> bool:
    digits = text[1:]
    return (
        text[0] == ":"
        and digits.isascii()
        and digits.isdigit()
        and len(digits) <= len(str(_MAX_PORT))
        and int(digits) <= _MAX_PORT
    )


@lru_cache(maxsize=_CACHED)
def _address_of(text: str) -> _Address | None:
    value = _value_of(text)
    return None if value is None else _Address(str(value), value.version, int(value))


def _value_of(text: str) -> IPv4Address | IPv6Address | None:
    """Return the address that `text` is, without its zone; an IPv4-mapped one as IPv4."""
    if ":" in text:
        # A zone means something on the machine that wrote it only.
        text = text.partition("%")[0]
    try:
        value = ip_address(text)
    except ValueError:
        return None
    return (value.ipv4_mapped or value) if isinstance(value, IPv6Address) else value
