import socket

import pytest
from aiohttp.abc import AbstractResolver, ResolveResult

from dataplane.upstream.addresses import AddressForbiddenError, AllowedAddresses, CheckingResolver

FORBIDDEN = [
    "127.0.0.1", "127.9.9.9", "10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254",
    "100.64.0.1", "100.100.100.200", "0.0.0.0",  # noqa: S104 - the point of it
    "255.255.255.255", "224.0.0.1", "198.18.0.1",
    "192.0.0.192", "240.0.0.1", "::1", "::", "fe80::1", "fe80::1%eth0", "fc00::1",
    "fd00:ec2::254", "fec0::1", "ff02::1", "::ffff:127.0.0.1", "::ffff:169.254.169.254",
    "::127.0.0.1", "::ffff:0:127.0.0.1", "2002:7f00:1::", "2002:a9fe:a9fe::",
    "64:ff9b::127.0.0.1", "64:ff9b:1::a00:1", "2001:db8::1", "2001:0:1::1",
]  # fmt: skip
PUBLIC = ["8.8.8.8", "1.1.1.1", "2606:4700::1111", "::ffff:8.8.8.8"]


@pytest.mark.parametrize("address", FORBIDDEN)
def test_an_address_that_is_not_public_may_not_be_called(address: str) -> None:
    allowed = AllowedAddresses()

    assert not allowed.has(address)
    with pytest.raises(AddressForbiddenError):
        allowed.check_host(address)


@pytest.mark.parametrize("address", PUBLIC)
def test_a_public_address_may_be_called(address: str) -> None:
    assert AllowedAddresses().has(address)
    AllowedAddresses().check_host(address)


def test_an_operator_may_allow_private_networks_and_no_others() -> None:
    allowed = AllowedAddresses(["10.1.0.0/16", "fd00::/8"])

    assert allowed.has("10.1.2.3")
    assert allowed.has("::ffff:10.1.2.3")
    assert allowed.has("fd12::1")
    assert not allowed.has("10.2.0.1")
    assert not allowed.has("127.0.0.1")


class Names(AbstractResolver):
    def __init__(self, *addresses: str) -> None:
        self.addresses = addresses

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        return [
            ResolveResult(hostname=host, host=each, port=port, family=family, proto=0, flags=0)
            for each in self.addresses
        ]

    async def close(self) -> None:
        pass


async def test_a_name_keeps_its_public_addresses_only() -> None:
    resolver = CheckingResolver(Names("10.0.0.1", "8.8.8.8", "::1"), AllowedAddresses())

    assert [each["host"] for each in await resolver.resolve("example.com")] == ["8.8.8.8"]
    await resolver.close()


async def test_a_name_without_a_public_address_may_not_be_called() -> None:
    resolver = CheckingResolver(Names("10.0.0.1", "169.254.169.254"), AllowedAddresses())

    with pytest.raises(AddressForbiddenError):
        await resolver.resolve("example.com")
