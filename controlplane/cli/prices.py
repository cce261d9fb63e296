"""`tollkeeper price`: what models cost."""

from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Final, TypeAlias

import typer

from controlplane.cli.connection import admin_channel
from controlplane.cli.durations import instant_from_text
from controlplane.cli.lazy_modules import imported_on_use
from controlplane.cli.money import nanousd_from_usd, usd_from_nanousd
from controlplane.cli.options import Output, timestamp_of
from controlplane.cli.output import Format, print_many, print_one
from controlplane.cli.paging import all_pages
from controlplane.cli.plain import Record, record_of
from controlplane.cli.typer_apps import example, new_app, reader
from controlplane.cli.waiting import waits

if TYPE_CHECKING:
    from tollkeeper.admin.v1 import price_service_pb2 as pb
    from tollkeeper.admin.v1 import price_service_pb2_grpc as rpc
    from tollkeeper.common.v1 import rates_pb2
else:
    pb = imported_on_use("tollkeeper.admin.v1.price_service_pb2")
    rpc = imported_on_use("tollkeeper.admin.v1.price_service_pb2_grpc")
    rates_pb2 = imported_on_use("tollkeeper.common.v1.rates_pb2")

app = new_app("Prices of models. A model without a price is refused: no budget could hold.")

_COLUMNS = (
    "id",
    "provider",
    "model",
    "effective_from",
    "input_usd_per_million",
    "output_usd_per_million",
    "free",
)

_USD: Final = reader(nanousd_from_usd)

PriceId: TypeAlias = Annotated[
    str, typer.Argument(metavar="ID", help="Which, as `price list` shows it.", show_default=False)
]


Input: TypeAlias = Annotated[
    int | None,
    typer.Option(
        "--input-usd-per-million",
        parser=_USD,
        metavar="USD",
        help="A million uncached input tokens.",
    ),
]
OutputTokens: TypeAlias = Annotated[
    int | None,
    typer.Option(
        "--output-usd-per-million",
        parser=_USD,
        metavar="USD",
        help="A million output tokens, reasoning included.",
    ),
]
CachedInput: TypeAlias = Annotated[
    int | None,
    typer.Option(
        "--cached-input-usd-per-million",
        parser=_USD,
        metavar="USD",
        help="A million input tokens read from the provider's cache; without it, as uncached.",
    ),
]
CacheWrite: TypeAlias = Annotated[
    int | None,
    typer.Option(
        "--cache-write-usd-per-million",
        parser=_USD,
        metavar="USD",
        help="A million input tokens written to a cache of five minutes; without it, 1.25 times input.",
    ),
]
CacheWriteHour: TypeAlias = Annotated[
    int | None,
    typer.Option(
        "--cache-write-1h-usd-per-million",
        parser=_USD,
        metavar="USD",
        help="Likewise, to a cache of an hour; without it, 2 times input.",
    ),
]
Request: TypeAlias = Annotated[
    int | None,
    typer.Option("--request-usd", parser=_USD, metavar="USD", help="Each request."),
]
From: TypeAlias = Annotated[
    datetime | None,
    typer.Option(
        "--from",
        parser=reader(instant_from_text),
        metavar="TIME",
        help="Not before this, 2026-01-01 or an ISO 8601 time, in UTC; since always without it.",
    ),
]


@app.command(
    "set",
    epilog=example(
        "price set --provider openai --model gpt-4o-mini "
        "--input-usd-per-million 0.15 --output-usd-per-million 0.60",
        "price set --provider mock --model 'free-*' --free",
    ),
)
@waits
def set_given(
    provider: Annotated[
        str, typer.Option(help="A provider's name or a kind of provider.", show_default=False)
    ],
    model: Annotated[
        str, typer.Option(help="A model, or a pattern that ends with '*'.", show_default=False)
    ],
    input_tokens: Input = None,
    output_tokens: OutputTokens = None,
    cached_input: CachedInput = None,
    cache_write: CacheWrite = None,
    cache_write_1h: CacheWriteHour = None,
    request: Request = None,
    effective_from: From = None,
    free: Annotated[bool, typer.Option("--free", help="Costs nothing.")] = False,
    output: Output = Format.TABLE,
) -> None:
    """Set a price, or replace the one of the same provider, model and --from.

    It is found by exact model, then longest literal prefix, then latest --from.
    """
    rates = rates_pb2.Rates(
        input_nanousd_per_million=input_tokens or 0,
        output_nanousd_per_million=output_tokens or 0,
        cache_read_nanousd_per_million=cached_input,
        cache_write_5m_nanousd_per_million=cache_write,
        cache_write_1h_nanousd_per_million=cache_write_1h,
        request_nanousd=request or 0,
    )
    if free and any(
        (input_tokens, output_tokens, cached_input, cache_write, cache_write_1h, request)
    ):
        raise typer.BadParameter("what is --free has no figures")
    if not free and not any((input_tokens, output_tokens, request)):
        raise typer.BadParameter(
            "give a price of input, output or requests above 0, or say that it is --free"
        )
    price = pb.Price(
        provider=provider,
        model=model,
        effective_from=timestamp_of(effective_from),
        rates=rates,
        free=free,
    )
    with admin_channel() as channel:
        service = rpc.PriceServiceStub(channel)
        print_one(service.SetPrice(pb.SetPriceRequest(price=price)), output)


@app.command(epilog=example("price get 7c1v5n0p3t8w"))
def get(price_id: PriceId, output: Output = Format.TABLE) -> None:
    """Show a price."""
    with admin_channel() as channel:
        service = rpc.PriceServiceStub(channel)
        print_one(service.GetPrice(pb.GetPriceRequest(id=price_id)), output)


@app.command("list", epilog=example("price list --provider openai"))
def list_all(
    provider: Annotated[
        str, typer.Option(help="Only of this provider or kind.", show_default=False)
    ] = "",
    model: Annotated[
        str, typer.Option(help="Only of exactly this model or pattern.", show_default=False)
    ] = "",
    output: Output = Format.TABLE,
) -> None:
    """List prices, by provider, model and --from."""
    with admin_channel() as channel:
        found = all_pages(
            rpc.PriceServiceStub(channel).ListPrices,
            pb.ListPricesRequest(provider=provider, model=model),
            lambda page: page.prices,
        )
        if output is Format.TABLE:
            print_many((_row(price) for price in found), output, _COLUMNS)
        else:
            print_many(found, output, _COLUMNS)


@app.command(epilog=example("price delete 7c1v5n0p3t8w"))
@waits
def delete(price_id: PriceId, output: Output = Format.TABLE) -> None:
    """Remove a price."""
    with admin_channel() as channel:
        service = rpc.PriceServiceStub(channel)
        print_one(service.DeletePrice(pb.DeletePriceRequest(id=price_id)), output)


def _row(price: "pb.Price") -> Record:
    """Return a price for a table, its main figures in USD."""
    return {
        **record_of(price),
        "input_usd_per_million": usd_from_nanousd(price.rates.input_nanousd_per_million),
        "output_usd_per_million": usd_from_nanousd(price.rates.output_nanousd_per_million),
    }
