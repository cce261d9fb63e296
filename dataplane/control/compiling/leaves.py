"""Users and prices: a bad one is set aside, so that it denies, and the others stay."""

from collections.abc import Iterator

from tollkeeper.config.v1 import resources_pb2 as pb

from dataplane.control.compiling.draft import Draft
from dataplane.control.raw_resources import RawResource, UnusableResourceError
from dataplane.control.read_prices import read_price, unusable_price
from dataplane.control.read_principals import read_user
from dataplane.domain.prices import Price, PriceBook, PriceEdition
from dataplane.domain.principals import Organization, User
from dataplane.domain.sharded_map import ShardedMap


async def users_of(
    draft: Draft, organizations: ShardedMap[str, Organization]
) -> ShardedMap[str, User]:
    """Return users by id; keys and devices of those that differ are to be read again."""

    async def changed(user_id: str, *_: User | None) -> None:
        await draft.touch_referrers(pb.RESOURCE_KIND_USER, user_id)

    def refers(message: pb.User) -> Iterator[tuple[int, str]]:
        found = organizations.get(message.organization_id)
        # The text that is there already: so many others name it.
        organization_id = message.organization_id if found is None else found.organization_id
        yield pb.RESOURCE_KIND_ORGANIZATION, organization_id

    return await draft.rebuilt(
        pb.RESOURCE_KIND_USER,
        pb.User,
        draft.origin.users,
        lambda each, message: read_user(each, message, organizations),
        draft.set_aside,
        changed=changed,
        refers=refers,
    )


async def prices_of(draft: Draft) -> tuple[ShardedMap[str, Price], PriceBook]:
    """Return prices by id, and the book that has them."""
    edition = PriceEdition(draft.origin.book)

    async def changed(_: str, before: Price | None, after: Price | None) -> None:
        if before is not None:
            edition.remove(before)
        if after is not None:
            edition.put(after)

    def read(each: RawResource, message: pb.Price) -> Price:
        try:
            return read_price(each, message)
        except (UnusableResourceError, ValueError) as error:
            # What it was to price must not cost what an older one says.
            draft.set_aside(each, str(error))
            return unusable_price(each, message)

    prices = await draft.rebuilt(
        pb.RESOURCE_KIND_PRICE,
        pb.Price,
        draft.origin.prices,
        read,
        draft.set_aside,
        changed=changed,
    )
    return prices, edition.done()
