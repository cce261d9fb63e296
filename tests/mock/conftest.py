import ssl
from collections.abc import AsyncIterator

import httpx
import pytest

from dataplane.mock.server import MockServer, serve
from tests.mock.dialects import Client

# Never used, but a client without one reads the certificates of the system, which takes longer
# than the tests themselves.
NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


@pytest.fixture
async def provider() -> AsyncIterator[MockServer]:
    async with await serve() as server:
        yield server


@pytest.fixture
async def http(provider: MockServer) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(
        base_url=provider.url, trust_env=False, timeout=10, verify=NO_TLS
    ) as client:
        yield client


@pytest.fixture(params=["openai", "anthropic"])
def client(request: pytest.FixtureRequest, http: httpx.AsyncClient) -> Client:
    return Client(request.param, http)
