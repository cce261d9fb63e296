"""Prices of models."""

from collections.abc import Callable
from datetime import datetime
from typing import Final

from tollkeeper.admin.v1 import changes_pb2, price_service_pb2_grpc
from tollkeeper.admin.v1 import price_service_pb2 as pb
from tollkeeper.common.v1 import rates_pb2

from controlplane.domain.errors import InvalidError
from controlplane.domain.names import new_id
from controlplane.domain.pricing import Rates, check_price
from controlplane.domain.routing import PROVIDER_KINDS
from controlplane.rpc.changing import AdminServicer, changing
from controlplane.rpc.interception import Context
from controlplane.rpc.pages import Page, page_of
from controlplane.rpc.resources import check_etag, from_timestamp, stamps_of, to_timestamp
from controlplane.store.prices import SINCE_ALWAYS, PriceKey
from controlplane.store.repositories import Repositories
from controlplane.store.tables import Price
from controlplane.store.transactions import Transaction

_ORDER: Final = ("provider", "model", "effective_from")
# Columns have the names of the fields. Those of a cache may be absent.
_RATES: Final = ("input_nanousd_per_million", "output_nanousd_per_million", "request_nanousd")
_CACHE_RATES: Final = (
    "cache_read_nanousd_per_million",
    "cache_write_5m_nanousd_per_million",
    "cache_write_1h_nanousd_per_million",
)


def price_to_proto(row: Price) -> pb.Price:
    """Return a price as the admin API shows it."""
    rates = rates_pb2.Rates(**{name: getattr(row, name) for name in (*_RATES, *_CACHE_RATES)})
    begins = row.effective_from != SINCE_ALWAYS
    return pb.Price(
        provider=row.provider,
        model=row.model,
        effective_from=to_timestamp(row.effective_from) if begins else None,
        rates=rates,
        free=row.free,
        **stamps_of(row),
    )


def rates_from_proto(given: rates_pb2.Rates) -> Rates:
    """Return the figures of a request; an absent rate is None, which is not 0."""
    return Rates(
        **{name: getattr(given, name) for name in _RATES},
        **{name: getattr(given, name) for name in _CACHE_RATES if given.HasField(name)},
    )


class PriceServicer(AdminServicer, price_service_pb2_grpc.PriceServiceServicer):
    """Serves PriceService."""

    @changing(pb.Price)
    async def SetPrice(
        self, tx: Transaction, request: pb.SetPriceRequest
    ) -> Callable[[], pb.Price]:
        """Add a price, or replace the one of the same identity."""
        given = request.price
        rates = rates_from_proto(given.rates)
        check_price(given.model, rates, free=given.free)
        await _check_provider(tx, given.provider)
        key = PriceKey(given.provider, given.model, _beginning(given))
        row = await tx.prices.find_for_change(key)
        if row is None:
            row = Price(
                id=new_id(self.backend.random_below),
                provider=key.provider,
                model=key.model,
                effective_from=key.effective_from,
                created_at=tx.now,
                updated_at=tx.now,
            )
            tx.add(row)
        else:
            check_etag(row, given)
        row.free = given.free
        for name in (*_RATES, *_CACHE_RATES):
            setattr(row, name, getattr(rates, name))
        return lambda: price_to_proto(row)

    async def GetPrice(self, request: pb.GetPriceRequest, _context: Context) -> pb.Price:
        """Return a price."""
        async with self.backend.store.reading() as session:
            return price_to_proto(await Repositories(session).prices.get(request.id))

    async def ListPrices(
        self, request: pb.ListPricesRequest, _context: Context
    ) -> pb.ListPricesResponse:
        """Return a page of prices."""
        page = page_of(request, keys=len(_ORDER))
        async with self.backend.store.reading() as session:
            rows = await Repositories(session).prices.page(
                after=_after(page), size=page.fetch, provider=request.provider, model=request.model
            )
        return pb.ListPricesResponse(
            prices=map(price_to_proto, page.cut(rows)),
            next_page_token=page.next_token(rows, *_ORDER),
        )

    @changing(changes_pb2.DeleteResult)
    async def DeletePrice(
        self, tx: Transaction, request: pb.DeletePriceRequest
    ) -> Callable[[], changes_pb2.DeleteResult]:
        """Remove a price; a model without any is refused from then on."""
        row = await tx.prices.get(request.id, for_change=True)
        check_etag(row, request)
        await tx.delete(row)
        return lambda: changes_pb2.DeleteResult(revision=tx.revision)


def _beginning(given: pb.Price) -> datetime:
    if not given.HasField("effective_from"):
        return SINCE_ALWAYS
    return from_timestamp(given.effective_from, field="price.effective_from")


def _after(page: Page) -> PriceKey | None:
    if not page.after:
        return None
    provider, model, effective_from = page.after
    try:
        return PriceKey(provider, model, datetime.fromisoformat(effective_from))
    except ValueError:
        raise InvalidError("this is not a token of this list", field="page_token") from None


async def _check_provider(tx: Transaction, provider: str) -> None:
    if provider not in PROVIDER_KINDS:
        await tx.providers.get(provider, field="price.provider")
