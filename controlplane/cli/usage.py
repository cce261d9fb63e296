"""`tollkeeper usage` and `tollkeeper logs`: what happened and what it cost, from the ledger."""

from datetime import datetime
from enum import StrEnum
from itertools import islice
from typing import TYPE_CHECKING, Annotated

import typer

from controlplane.cli.connection import admin_channel
from controlplane.cli.lazy_modules import imported_on_use
from controlplane.cli.options import (
    OfKey,
    OfModel,
    OfOrganization,
    OfUser,
    Output,
    Since,
    Until,
    timestamp_of,
)
from controlplane.cli.output import Format, print_many
from controlplane.cli.paging import REQUESTS_PER_PAGE, all_pages
from controlplane.cli.plain import Record, record_of

if TYPE_CHECKING:
    from tollkeeper.admin.v1 import usage_service_pb2 as pb
    from tollkeeper.admin.v1 import usage_service_pb2_grpc as rpc
    from tollkeeper.usage.v1.usage_service_pb2 import UsageRecord
else:
    pb = imported_on_use("tollkeeper.admin.v1.usage_service_pb2")
    rpc = imported_on_use("tollkeeper.admin.v1.usage_service_pb2_grpc")

_SUMS = (
    "requests",
    "input_total_tokens",
    "cache_read_tokens",
    "output_tokens",
    "cost_nanousd",
    "charged_nanousd",
)
_LOG_COLUMNS = (
    "started_at",
    "id",
    "status",
    "user",
    "device",
    "provider",
    "model",
    "input_total",
    "output",
    "cost_nanousd",
    "duration_ms",
    "error_code",
)


class GroupBy(StrEnum):
    """What sums are grouped by."""

    MODEL = "model"
    USER = "user"
    KEY = "key"
    DEVICE = "device"
    ORG = "org"
    DAY = "day"


def usage(
    org: OfOrganization = "",
    user: OfUser = "",
    key: OfKey = "",
    model: OfModel = "",
    by: Annotated[GroupBy | None, typer.Option(help="One sum for each of these.")] = None,
    since: Since = None,
    until: Until = None,
    output: Output = Format.TABLE,
) -> None:
    """Show sums of requests, tokens and cost, the most expensive first; at most 10,000 groups."""
    group = _group_noun(by)
    with admin_channel() as channel:
        request = pb.SumRequestsRequest(
            filter=_filter(org, user, key, model, since, until, ""),
            group_by=pb.UsageGroup.Value(
                f"USAGE_GROUP_{group.upper()}" if group else "USAGE_GROUP_UNSPECIFIED"
            ),
        )
        response = rpc.UsageServiceStub(channel).SumRequests(request)
        rows = [_sum_row(group, each) for each in response.sums]
        columns = (group, *_SUMS) if group else _SUMS
        print_many(rows, output, columns)


def logs(
    org: OfOrganization = "",
    user: OfUser = "",
    key: OfKey = "",
    model: OfModel = "",
    since: Since = None,
    until: Until = None,
    request_id: Annotated[str, typer.Option(help="Only this request.", show_default=False)] = "",
    limit: Annotated[
        int | None, typer.Option(min=1, help="At most this many; all without it.")
    ] = None,
    output: Output = Format.TABLE,
) -> None:
    """Show every admitted request, newest first."""
    with admin_channel() as channel:
        found = all_pages(
            rpc.UsageServiceStub(channel).ListRequests,
            pb.ListRequestsRequest(filter=_filter(org, user, key, model, since, until, request_id)),
            lambda page: page.requests,
            page_size=min(limit or REQUESTS_PER_PAGE, REQUESTS_PER_PAGE),
        )
        print_many((log_row(record) for record in islice(found, limit)), output, _LOG_COLUMNS)


def log_row(record: "UsageRecord") -> Record:
    """Return a request of the ledger under the names that `logs` shows."""
    fields = record_of(record)
    return {
        "id": record.request_id,
        "client_request_id": record.client_request_id,
        "status": record.http_status,
        "state": fields["state"],
        "error_code": record.error_code or None,
        "organization": record.organization,
        "user": record.user,
        "key": record.key,
        "device": record.device_id or None,
        "tier": record.tier or None,
        "ip": record.ip,
        "router": record.router,
        "rule": record.rule_id,
        "provider": record.provider,
        "requested_model": record.requested_model,
        "model": record.model,
        "endpoint": record.endpoint,
        "dialect": fields["dialect"],
        "stream": record.stream,
        "input_total": record.input_total_tokens,
        "total": record.input_total_tokens + record.output_tokens,
        "input_uncached": record.input_uncached_tokens,
        "cache_read": record.cache_read_tokens,
        "cache_write": record.cache_write_5m_tokens + record.cache_write_1h_tokens,
        "cache_write_5m": record.cache_write_5m_tokens,
        "cache_write_1h": record.cache_write_1h_tokens,
        "output": record.output_tokens,
        "reasoning": record.reasoning_tokens,
        "cost_nanousd": record.cost_nanousd,
        "charged_nanousd": record.charged_nanousd,
        "reserved_nanousd": record.reserved_nanousd,
        "reserved_tokens": record.reserved_tokens,
        "source": fields["source"],
        "attempts": record.attempts,
        "is_cached": record.is_cached,
        "is_failover": record.is_failover,
        "started_at": fields["started_at"],
        "duration_ms": record.duration_ms,
        "first_content_ms": record.first_content_ms,
        "usage_day": record.usage_day,
        "node": record.node_id,
        "config_revision": record.config_revision,
    }


def _filter(
    org: str,
    user: str,
    key: str,
    model: str,
    since: datetime | None,
    until: datetime | None,
    request_id: str,
) -> "pb.RequestFilter":
    return pb.RequestFilter(
        organization=org,
        user=user,
        key=key,
        model=model,
        since=timestamp_of(since),
        until=timestamp_of(until),
        request_id=request_id,
    )


def _group_noun(by: GroupBy | None) -> str | None:
    return "organization" if by is GroupBy.ORG else by


def _sum_row(group: str | None, row: "pb.UsageSum") -> Record:
    """Return a sum, its group also under the noun that was grouped by."""
    named: Record = {group: row.group} if group else {}
    return {**named, **record_of(row)}
