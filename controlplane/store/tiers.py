"""Who has a tier."""

from sqlalchemy.orm import Mapped
from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from controlplane.store.tables import ApiKey, Device, User


async def holders_of(session: AsyncSession, tier: str) -> list[str]:
    """Return everybody who has a tier, as people call them: `user acme/alice`, `key acme/alice/laptop`, `device 3k2…`.

    A user's keys and devices have it through the user and are not named, unless they have it themselves.
    """
    columns: tuple[tuple[str, Mapped[str], Mapped[str]], ...] = (
        ("user", col(User.name), col(User.tier)),
        ("key", col(ApiKey.name), col(ApiKey.tier)),
        ("device", col(Device.id), col(Device.tier)),
    )
    holders = []
    for noun, name, its_tier in columns:
        found = await session.exec(select(name).where(its_tier == tier).order_by(name))
        holders += [f"{noun} {each}" for each in found.all()]
    return holders
