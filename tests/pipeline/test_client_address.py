"""Whose address a call counts for: never one that a client made up."""

import pytest

from tests.pipeline.conftest import DataPlane

SPOOFED = [
    {"x-forwarded-for": "198.51.100.7"},
    {"x-forwarded-for": "198.51.100.7, 127.0.0.1"},
    {"x-real-ip": "198.51.100.7"},
    {"cf-connecting-ip": "198.51.100.7"},
    {"forwarded": "for=198.51.100.7"},
    {"true-client-ip": "198.51.100.7"},
]


@pytest.mark.parametrize("headers", SPOOFED, ids=lambda given: next(iter(given)))
async def test_a_client_that_no_proxy_speaks_for_is_its_peer(
    data_plane: DataPlane, headers: dict[str, str]
) -> None:
    data_plane.client.headers.update(headers)

    assert (await data_plane.chat()).status_code == 200

    assert [each.ip for each in data_plane.records.closes] == ["127.0.0.1"]


class TestBehindATrustedProxy:
    """The tests' own connections count as those of a proxy that sets `x-forwarded-for`."""

    @pytest.fixture
    def trusts_loopback(self) -> bool:
        return True

    async def test_the_proxy_says_who_calls_and_the_client_says_nothing(
        self, data_plane: DataPlane
    ) -> None:
        # The client wrote the first one; the proxy added its own caller.
        data_plane.client.headers["x-forwarded-for"] = "6.6.6.6, 198.51.100.7"
        await data_plane.chat()
        data_plane.client.headers["x-forwarded-for"] = "2001:db8::7"
        await data_plane.chat()

        addresses = [each.ip for each in data_plane.records.closes]
        assert addresses == ["198.51.100.7", "2001:db8::7"]

    @pytest.mark.parametrize("header", ["x-real-ip", "cf-connecting-ip", "forwarded"])
    async def test_other_headers_than_the_proxys_say_nothing(
        self, data_plane: DataPlane, header: str
    ) -> None:
        data_plane.client.headers[header] = "198.51.100.7"
        await data_plane.chat()

        assert [each.ip for each in data_plane.records.closes] == ["127.0.0.1"]
