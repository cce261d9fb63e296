import secrets
from collections.abc import AsyncIterator

import pytest

from controlplane.store.database import Store
from controlplane.store.service import ensure_bootstrap_owner, ensure_tiers
from tests.rpc.admin_api import OWNER_TOKEN, AdminApi, RecordingRevoker, admin_server, listening


@pytest.fixture
def revoker() -> RecordingRevoker:
    return RecordingRevoker()


@pytest.fixture
async def api(store: Store, revoker: RecordingRevoker) -> AsyncIterator[AdminApi]:
    """The admin API of a new database, as the bootstrap owner."""
    await ensure_bootstrap_owner(store, OWNER_TOKEN, secrets.randbelow)
    await ensure_tiers(store)
    async with listening(admin_server(store, revoker)) as address:
        client = AdminApi(address)
        yield client
        await client.channel.close()
