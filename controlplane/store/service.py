"""What a control plane brings in line with its environment when it starts."""

from typing import Final

from controlplane.domain import tiers
from controlplane.domain.errors import InvalidError, StaleError
from controlplane.domain.keys import is_administrator_token, sha256_of
from controlplane.domain.names import RandomBelow, new_id
from controlplane.domain.roles import Role
from controlplane.domain.service import ServiceDefaults
from controlplane.store.database import Store
from controlplane.store.subject_limits import limits_to_json
from controlplane.store.tables import Administrator, ServiceSettings, Tier
from controlplane.store.transactions import Transaction

SERVICE_ID: Final = "service"
BOOTSTRAP_NAME: Final = "bootstrap"
SYSTEM_ACTOR: Final = "system"


async def apply_service_settings(store: Store, defaults: ServiceDefaults) -> None:
    """Make the service's row say what the environment says; writes only what differs.

    A pause by an administrator stays.
    """
    values = {
        "max_replicas": defaults.max_replicas,
        "default_user_limits": limits_to_json(defaults.user_limits),
        "default_global_limits": limits_to_json(defaults.global_limits),
        "upgrade_url": defaults.upgrade_url,
        "support_url": defaults.support_url,
    }
    async with store.transaction(SYSTEM_ACTOR, "ApplyServiceSettings") as tx:
        tx.describe(SERVICE_ID, values)
        row = await service_settings(tx)
        for column, value in values.items():
            if getattr(row, column) != value:
                setattr(row, column, value)


async def service_settings(tx: Transaction) -> ServiceSettings:
    """Return the service's row and keep others from changing it until this transaction ends; it is added if missing."""
    row = await tx.session.get(
        ServiceSettings, SERVICE_ID, with_for_update=True, populate_existing=True
    )
    if row is None:
        row = ServiceSettings(id=SERVICE_ID, created_at=tx.now, updated_at=tx.now)
        tx.add(row)
    return row


async def ensure_tiers(store: Store) -> None:
    """Make sure that the built-in tiers are there; one that an administrator changed stays as it is."""
    for seed in tiers.SEEDS:
        try:
            await _add_if_missing(store, seed)
        except StaleError:
            # Another control plane that starts at this moment added it.
            await _add_if_missing(store, seed)


async def _add_if_missing(store: Store, seed: tiers.Tier) -> None:
    async with store.transaction(SYSTEM_ACTOR, "EnsureTiers") as tx:
        tx.describe(seed.name, {"name": seed.name})
        if await tx.tiers.find(seed.name) is not None:
            return
        row = Tier(id=seed.name, name=seed.name, created_at=tx.now, updated_at=tx.now)
        for layers in tiers.LAYERS:
            setattr(row, layers, limits_to_json(getattr(seed, layers)))
        tx.add(row)


async def ensure_bootstrap_owner(store: Store, token: str, random_below: RandomBelow) -> None:
    """Make sure that `token` is an owner's: the one administrator that comes from the environment.

    Another token than at the last start takes the place of that one.

    Raises:
        InvalidError: It does not have the form of an administrator's token; the error does not show it.
    """
    if not is_administrator_token(token):
        raise InvalidError("an administrator's token is tka_ and 43 characters of base62")
    digest = sha256_of(token)
    async with store.transaction(SYSTEM_ACTOR, "EnsureBootstrapOwner") as tx:
        tx.describe(BOOTSTRAP_NAME, {"name": BOOTSTRAP_NAME})
        if await tx.administrators.by_token(digest):
            return
        row = await tx.administrators.find(BOOTSTRAP_NAME)
        if row is None:
            row = Administrator(
                id=new_id(random_below),
                name=BOOTSTRAP_NAME,
                role=Role.OWNER,
                token_sha256=digest,
                created_at=tx.now,
                updated_at=tx.now,
            )
            tx.add(row)
        row.token_sha256 = digest
        row.role = Role.OWNER
