"""From what the gateway noted of a request to what the ledger is told."""

from typing import Final

from google.protobuf.timestamp_pb2 import Timestamp
from tollkeeper.common.v1 import rates_pb2
from tollkeeper.config.v1 import resources_pb2
from tollkeeper.usage.v1 import usage_service_pb2 as pb

from dataplane.domain.calls import Dialect, TriedLayers, UsageEvent, UsageSource, UsageState

# As much of a text as the ledger keeps; callers choose some of them.
MAX_TEXT: Final = 1_000

STATES: Final = {
    UsageState.SETTLED: pb.USAGE_STATE_SETTLED,
    UsageState.RELEASED: pb.USAGE_STATE_RELEASED,
    UsageState.ABANDONED: pb.USAGE_STATE_ABANDONED,
}
SOURCES: Final = {
    UsageSource.NONE: pb.USAGE_SOURCE_UNSPECIFIED,
    UsageSource.REPORTED: pb.USAGE_SOURCE_REPORTED,
    UsageSource.PARTIAL: pb.USAGE_SOURCE_PARTIAL,
    UsageSource.ESTIMATED: pb.USAGE_SOURCE_ESTIMATED,
    UsageSource.UNKNOWN: pb.USAGE_SOURCE_UNKNOWN,
}
DIALECTS: Final = {
    Dialect.OPENAI: resources_pb2.DIALECT_OPENAI,
    Dialect.ANTHROPIC: resources_pb2.DIALECT_ANTHROPIC,
    Dialect.GOOGLE: resources_pb2.DIALECT_GOOGLE,
}


def record_from(event: UsageEvent) -> pb.UsageRecord:
    """Return the record of a request that is over.

    There is no response cache, so its field stays empty. Texts are cut to `MAX_TEXT` characters, as
    the ledger does.
    """
    used = event.usage
    started_at = Timestamp()
    started_at.FromMilliseconds(event.started_at_ms)
    return pb.UsageRecord(
        request_id=event.request_id,
        client_request_id=_text(event.client_request_id),
        node_id=event.node_id,
        state=STATES[event.state],
        http_status=event.http_status,
        error_code=event.error_code,
        organization_id=event.organization_id,
        organization=_text(event.organization),
        user_id=event.user_id,
        user=_text(event.user),
        key_id=event.key_id,
        key=_text(event.key),
        device_id=event.device_id,
        tier=_text(event.tier),
        ip=event.ip,
        router=_text(event.router),
        rule_id=event.rule_id,
        provider=_text(event.provider),
        requested_model=_text(event.requested_model),
        model=_text(event.model),
        endpoint=event.endpoint,
        stream=event.stream,
        dialect=DIALECTS[event.dialect],
        input_total_tokens=used.input_total_tokens,
        input_uncached_tokens=used.input_uncached_tokens,
        cache_read_tokens=used.cache_read_tokens,
        cache_write_5m_tokens=used.cache_write_5m_tokens,
        cache_write_1h_tokens=used.cache_write_1h_tokens,
        output_tokens=used.output_tokens,
        reasoning_tokens=used.reasoning_tokens,
        source=SOURCES[used.source],
        cost_nanousd=event.cost_nanousd,
        charged_nanousd=event.charged_nanousd,
        reserved_nanousd=event.reserved_nanousd,
        reserved_tokens=event.reserved_tokens,
        price_id=event.price_id,
        price_revision=event.price_revision,
        rates=_rates(event),
        usage_day=event.usage_day,
        usage_month=event.usage_month,
        service_day=event.service_day,
        generations=[
            pb.CountedGeneration(layer=layer, reset_generation=generation)
            for layer, generation in event.generations
        ],
        config_revision=event.config_revision,
        address_subjects=event.address_subjects,
        layers=_layers(event.layers),
        is_degraded=event.is_degraded,
        output_cap_tokens=event.output_cap_tokens,
        attempts=event.attempts,
        is_failover=event.attempts > 1,
        started_at=started_at,
        duration_ms=event.duration_ms,
        first_content_ms=event.first_content_ms,
    )


def _layers(tried: TriedLayers) -> pb.TriedLayers | None:
    if not tried.names:
        return None
    return pb.TriedLayers(
        names=tried.names,
        capacities=tried.capacities,
        reserved=tried.reserved,
        remaining=tried.remaining,
        shadow=tried.shadows,
        soft=tried.softs,
    )


def _rates(event: UsageEvent) -> rates_pb2.Rates | None:
    if event.rates is None:
        return None
    input_rate, output_rate, cache_read, cache_write_5m, cache_write_1h, request = event.rates
    return rates_pb2.Rates(
        input_nanousd_per_million=input_rate,
        output_nanousd_per_million=output_rate,
        cache_read_nanousd_per_million=cache_read,
        cache_write_5m_nanousd_per_million=cache_write_5m,
        cache_write_1h_nanousd_per_million=cache_write_1h,
        request_nanousd=request,
    )


def _text(text: str) -> str:
    return text[:MAX_TEXT]
