"""The values that the stages of a request hand on."""

from dataclasses import dataclass
from enum import StrEnum

import msgspec


class Dialect(StrEnum):
    """A wire format of requests and answers."""

    OPENAI = "openai"
    ANTHROPIC = "anthropic"
    GOOGLE = "google"


class UsageSource(StrEnum):
    """Where token counts come from; the empty value: nothing was counted."""

    NONE = ""
    REPORTED = "reported"
    PARTIAL = "partial"
    ESTIMATED = "estimated"
    UNKNOWN = "unknown"


class UsageState(StrEnum):
    """How an admitted request ended."""

    SETTLED = "settled"
    RELEASED = "released"
    ABANDONED = "abandoned"


@dataclass(frozen=True, slots=True)
class Call:
    """One request of a caller, decoded as far as the gateway must understand it.

    `body` is what the caller sent; it goes upstream as it is but for the fields that the
    gateway sets. `given_fields` are the top-level names among those that it may set.
    `request_id` is made by the gateway. `output_cap_tokens` is the caller's own, for each of its `choices`. `input_upper_tokens` is a
    true upper bound (but for `server_tools`, which the provider runs by itself and bills by use),
    `input_estimate_tokens` what a provider that says nothing probably read.
    `timeout_seconds` is until the head of the answer.
    """

    request_id: str
    dialect: Dialect
    endpoint: str
    model: str
    body: bytes
    is_stream: bool
    wants_stream_usage: bool
    output_cap_tokens: int | None
    choices: int
    input_upper_tokens: int
    input_estimate_tokens: int
    given_fields: frozenset[str]
    stream_options: bytes | None = None
    client_request_id: str = ""
    client_ip: str = ""
    passed_headers: tuple[tuple[str, str], ...] = ()
    timeout_seconds: float = 600.0
    server_tools: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Usage:
    """What a request consumed, in tokens.

    Input classes do not overlap and add up to `input_total_tokens` (but for providers that
    report more cached tokens than input); reasoning is part of output.
    """

    input_total_tokens: int = 0
    input_uncached_tokens: int = 0
    cache_read_tokens: int = 0
    cache_write_5m_tokens: int = 0
    cache_write_1h_tokens: int = 0
    output_tokens: int = 0
    reasoning_tokens: int = 0
    source: UsageSource = UsageSource.NONE

    @property
    def total_tokens(self) -> int:
        """Return input and output tokens together."""
        return self.input_total_tokens + self.output_tokens


NO_USAGE = Usage()


class TriedLayers(msgspec.Struct, frozen=True, array_like=True):
    """What the layers said when a request was admitted, column by column.

    The first four have an item for each layer, in the plan's order; amounts are in its unit, money
    in nano-USD. `remaining` is what was left right after; before it were `reserved` more. `shadows`
    and `softs` are places in the columns. Columns, because a request has some twenty layers, and the
    names and capacities of its plan are the same each time.
    """

    names: tuple[str, ...] = ()
    capacities: tuple[int, ...] = ()
    reserved: tuple[int, ...] = ()
    remaining: tuple[int, ...] = ()
    shadows: tuple[int, ...] = ()
    softs: tuple[int, ...] = ()


NO_LAYERS = TriedLayers()


class UsageEvent(msgspec.Struct, frozen=True):
    """One admitted request, once it is over; the fields are those of `UsageRecord` in the contract.

    Times are Unix milliseconds. Fields that came later have defaults, so that a spool of the version
    before can be read. The spool keeps it, the reporter turns it into a `UsageRecord`.
    A struct: two of them are made per request, and a frozen dataclass of so many fields is slow.
    """

    request_id: str
    client_request_id: str
    node_id: str
    state: UsageState
    http_status: int
    error_code: str
    organization_id: str
    organization: str
    user_id: str
    user: str
    key_id: str
    key: str
    tier: str
    ip: str
    router: str
    rule_id: str
    provider: str
    requested_model: str
    model: str
    endpoint: str
    stream: bool
    dialect: Dialect
    usage: Usage
    cost_nanousd: int
    charged_nanousd: int
    reserved_nanousd: int
    reserved_tokens: int
    price_id: str
    price_revision: int
    usage_day: str
    usage_month: str
    service_day: str
    config_revision: int
    attempts: int
    started_at_ms: int
    duration_ms: int
    first_content_ms: int
    generations: tuple[tuple[str, int], ...] = ()
    device_id: str = ""
    address_subjects: tuple[str, ...] = ()
    layers: TriedLayers = NO_LAYERS
    is_degraded: bool = False
    output_cap_tokens: int = 0
    # As in `Price`: input, output, cache read, cache write 5 m and 1 h per million tokens, per request.
    rates: tuple[int, int, int, int, int, int] | None = None
