"""One request of the ledger, explained: its fields in a readable order, the layers that it passed, and why in words."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from controlplane.cli.money import usd_from_nanousd
from controlplane.cli.plain import Plain, Record, record_of
from controlplane.cli.usage import log_row

if TYPE_CHECKING:
    from tollkeeper.usage.v1.usage_service_pb2 import UsageRecord

LAYER_COLUMNS: Final = (
    "layer",
    "capacity",
    "reserved",
    "remaining_before",
    "remaining_after",
    "soft",
    "shadow",
    "reset_generation",
)
_AMOUNTS: Final = ("capacity", "reserved", "remaining_before", "remaining_after")
_SPEND: Final = "spend"
_CLIENT_LEFT: Final = 499

_STATES: Final = {
    "settled": "Bytes went to a provider, and the charge is final.",
    "released": "Nothing went to a provider: what was reserved was given back, and nothing is charged.",
    "abandoned": "The data plane that served it stopped before it could say what it cost: "
    "what was reserved is charged until the true figure arrives.",
}
_SOURCES: Final = {
    "reported": "The token counts are the provider's own final figures.",
    "partial": "The token counts are the provider's figures so far, completed by counting what was streamed.",
    "estimated": "The token counts were estimated from bytes: the provider gave none.",
    "unknown": "Nobody knows the token counts: bytes were sent, and no answer came.",
}


def document(record: "UsageRecord") -> Record:
    """Return everything that the ledger says of a request, in the names of `logs` and beyond them."""
    fields = record_of(record)
    layers: list[Plain] = [*layer_rows(record)]
    sentences: list[Plain] = [*reasons(record)]
    return {
        **log_row(record),
        "usage_month": record.usage_month,
        "service_day": record.service_day,
        "address_subjects": list(record.address_subjects),
        "settled_nanousd": record.charged_nanousd,
        "settled_tokens": _settled_tokens(record),
        "price_id": record.price_id or None,
        "price_revision": record.price_revision,
        "rates": fields["rates"],
        "output_cap_tokens": record.output_cap_tokens,
        "is_degraded": record.is_degraded,
        "layers": layers,
        "why": sentences,
    }


def caller_and_route(record: "UsageRecord") -> Record:
    """Return who called and which way the request went."""
    row = log_row(record)
    names = (
        *("id", "client_request_id", "started_at", "duration_ms", "first_content_ms", "status"),
        *("error_code", "organization", "user", "key", "device", "tier", "ip", "node", "router"),
        *("rule", "provider", "requested_model", "model", "endpoint", "dialect", "stream"),
        *("attempts", "is_failover", "is_cached", "config_revision"),
    )
    return {name: row[name] for name in names}


def price_and_charge(record: "UsageRecord") -> Record:
    """Return the price that was pinned, what was counted, and what became of the reservation."""
    row = document(record)
    rates = record_of(record.rates) if record.HasField("rates") else {}
    counted = (
        *("input_total", "input_uncached", "cache_read", "cache_write_5m", "cache_write_1h"),
        *("output", "reasoning", "source", "output_cap_tokens", "reserved_tokens"),
        *("settled_tokens", "reserved_nanousd", "cost_nanousd", "settled_nanousd"),
        *("charged_nanousd", "usage_day", "usage_month", "service_day", "state", "is_degraded"),
    )
    return {
        "price_id": row["price_id"],
        "price_revision": row["price_revision"],
        **{
            # Shown in dollars: what is per million is an amount as any other.
            name.replace("nanousd", "usd"): usd_from_nanousd(rate)
            for name, rate in rates.items()
            if isinstance(rate, int)
        },
        **{name: row[name] for name in counted},
    }


def layer_rows(record: "UsageRecord") -> list[Record]:
    """Return every layer that admission tried, in the order in which they bind; spend in nano-USD."""
    generations = {each.layer: each.reset_generation for each in record.generations}
    tried = record.layers
    rows = zip(tried.names, tried.capacities, tried.reserved, tried.remaining, strict=True)
    return [
        {
            "layer": name,
            # `user_spend_per_month`, `key_parallel`: the second word is the unit.
            "unit": name.split("_")[1] if "_" in name else "",
            "capacity": capacity,
            "reserved": reserved,
            "remaining_before": _remaining_before(remaining, reserved, place in tried.shadow),
            "remaining_after": remaining,
            "soft": place in tried.soft,
            "shadow": place in tried.shadow,
            "reset_generation": generations.get(name, 0),
        }
        for place, (name, capacity, reserved, remaining) in enumerate(rows)
    ]


def _remaining_before(remaining: int, reserved: int, is_shadow: bool) -> int | None:
    """Return what was left before; unknown of a shadow that has nothing left, which may have been short of what it reserved."""
    return None if is_shadow and not remaining else remaining + reserved


def layer_in_dollars(row: Record) -> Record:
    """Return a layer for a table: its amounts in US dollars where they are money."""
    if row["unit"] != _SPEND:
        return row
    return {**row, **{name: _usd(row[name]) for name in _AMOUNTS}}


def reasons(record: "UsageRecord") -> Iterator[str]:
    """Yield why the request was charged what it was, a sentence each."""
    fields = record_of(record)
    state, source = fields["state"], fields["source"]
    yield _STATES.get(str(state), f"Its state is {state}.")
    if record.error_code:
        yield f"It ended with {record.error_code}, HTTP status {record.http_status}."
    if record.http_status == _CLIENT_LEFT:
        yield "The client left first: what was generated until then is charged."
    if record.is_cached:
        yield "It was answered from the response cache."
    if record.is_failover:
        yield f"Another attempt than the first answered: there were {record.attempts}."
    yield _SOURCES.get(str(source), "No tokens were counted.")
    if record.output_cap_tokens:
        yield (
            "The caller gave no output cap, so the gateway sent one: "
            f"{record.output_cap_tokens} tokens."
        )
    yield from _of_price(record)
    yield from _of_money(record)
    yield from _of_layers(record)


def _of_price(record: "UsageRecord") -> Iterator[str]:
    if record.price_id:
        yield (
            f"Price {record.price_id} was pinned when it was admitted, "
            f"as it was at revision {record.price_revision}."
        )
    else:
        yield "No price was pinned when it was admitted."


def _of_money(record: "UsageRecord") -> Iterator[str]:
    reserved, charged = record.reserved_nanousd, record.charged_nanousd
    difference = charged - reserved
    if reserved and difference:
        direction = "more" if difference > 0 else "less"
        yield (
            f"{_usd(reserved)} were reserved and {_usd(charged)} charged: "
            f"{_usd(abs(difference))} {direction}."
        )
    elif reserved:
        yield f"{_usd(charged)} were reserved, and all of it charged."
    else:
        yield f"Nothing was reserved, and {_usd(charged)} charged."
    if record.cost_nanousd > charged:
        yield (
            f"All attempts together cost {_usd(record.cost_nanousd)}; "
            "only the one that answered counts against budgets."
        )


def _of_layers(record: "UsageRecord") -> Iterator[str]:
    if record.is_degraded:
        yield "Counters could not be read: it was served within emergency limits."
    if not record.layers.names:
        yield "No layers are recorded of it."
    tried = set(record.layers.names)
    for each in record.generations:
        # Resets of what had no limit yet are in the record too: for limits that come later.
        if each.layer not in tried:
            continue
        yield (
            f"{each.layer} counted it in generation {each.reset_generation}: "
            "an administrator had reset that counter."
        )


def _settled_tokens(record: "UsageRecord") -> int:
    """Return the tokens that counters hold of it, as the ledger's sums do."""
    match record_of(record)["state"]:
        case "released":
            return 0
        case "abandoned":
            return record.reserved_tokens
        case _:
            return record.input_total_tokens + record.output_tokens


def _usd(nanousd: Plain) -> str:
    return f"{usd_from_nanousd(nanousd)} USD" if isinstance(nanousd, int) else "-"
