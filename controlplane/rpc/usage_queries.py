"""`admin.v1.UsageService`: questions to the ledger."""

import base64
import binascii
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import grpc
import grpc.aio
from google.protobuf.timestamp_pb2 import Timestamp
from tollkeeper.admin.v1 import usage_service_pb2 as pb
from tollkeeper.admin.v1 import usage_service_pb2_grpc as pb_grpc

from controlplane.rpc.usage_records import record_from_row
from controlplane.store import ledger
from controlplane.store.database import Store
from controlplane.store.ledger import PagePosition, RequestFilter, UsageGroup
from controlplane.store.tables import UsageRow

_DEFAULT_PAGE_SIZE: Final = 100
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)

_GROUPS: Final = {
    pb.USAGE_GROUP_UNSPECIFIED: None,
    pb.USAGE_GROUP_MODEL: UsageGroup.MODEL,
    pb.USAGE_GROUP_USER: UsageGroup.USER,
    pb.USAGE_GROUP_KEY: UsageGroup.KEY,
    pb.USAGE_GROUP_DEVICE: UsageGroup.DEVICE,
    pb.USAGE_GROUP_ORGANIZATION: UsageGroup.ORGANIZATION,
    pb.USAGE_GROUP_DAY: UsageGroup.DAY,
}


class UsageQueryServicer(pb_grpc.UsageServiceServicer):
    """Lists requests and sums them."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def ListRequests(
        self,
        request: pb.ListRequestsRequest,
        context: grpc.aio.ServicerContext[pb.ListRequestsRequest, pb.ListRequestsResponse],
    ) -> pb.ListRequestsResponse:
        """Return a page of requests, newest first.

        Pages go by what was seen last, so requests that arrive meanwhile shift nothing. The layers that admission tried
        are only in the answer to a filter by request id.
        """
        chosen = await _filter_or_abort(request.filter, context)
        after = None
        if request.page_token:
            try:
                after = position_from_token(request.page_token)
            except ValueError:
                await context.abort(
                    grpc.StatusCode.INVALID_ARGUMENT, "page_token is not one of ours"
                )
        page_size = request.page_size or _DEFAULT_PAGE_SIZE
        with_layers = bool(chosen.request_id)
        async with self._store.reading() as session:
            rows = await ledger.list_requests(
                session, chosen, limit=page_size + 1, after=after, with_layers=with_layers
            )
        page = rows[:page_size]
        return pb.ListRequestsResponse(
            requests=[record_from_row(row, with_layers=with_layers) for row in page],
            next_page_token=token_of(page[-1]) if len(rows) > page_size else "",
        )

    async def SumRequests(
        self,
        request: pb.SumRequestsRequest,
        context: grpc.aio.ServicerContext[pb.SumRequestsRequest, pb.SumRequestsResponse],
    ) -> pb.SumRequestsResponse:
        """Return sums by group, the most expensive first."""
        chosen = await _filter_or_abort(request.filter, context)
        async with self._store.reading() as session:
            sums = await ledger.sum_requests(session, chosen, _GROUPS[request.group_by])
        return pb.SumRequestsResponse(
            sums=[
                pb.UsageSum(
                    group=each.group,
                    requests=each.requests,
                    input_total_tokens=each.input_total_tokens,
                    cache_read_tokens=each.cache_read_tokens,
                    output_tokens=each.output_tokens,
                    cost_nanousd=each.cost_nanousd,
                    charged_nanousd=each.charged_nanousd,
                )
                for each in sums
            ]
        )


def token_of(row: UsageRow) -> str:
    """Return the page token of the page that follows `row`."""
    microseconds = (row.started_at - _EPOCH) // timedelta(microseconds=1)
    return base64.urlsafe_b64encode(f"{microseconds}:{row.request_id}".encode()).decode()


def position_from_token(token: str) -> PagePosition:
    """Return where a page begins.

    Raises:
        ValueError: The token was not made by `token_of`.
    """
    try:
        text = base64.b64decode(token, altchars=b"-_", validate=True).decode()
    except binascii.Error as error:
        raise ValueError("not base64") from error
    microseconds, separator, request_id = text.partition(":")
    if not separator or "\0" in request_id:
        raise ValueError("not a position")
    try:
        return PagePosition(_EPOCH + timedelta(microseconds=int(microseconds)), request_id)
    except OverflowError as error:
        raise ValueError("not an instant") from error


async def _filter_or_abort(
    message: pb.RequestFilter,
    context: grpc.aio.ServicerContext[Any, Any],  # Any: of either method
) -> RequestFilter:
    try:
        return RequestFilter(
            organization=message.organization,
            user=message.user,
            key=message.key,
            model=message.model,
            since=_instant(message.since) if message.HasField("since") else None,
            until=_instant(message.until) if message.HasField("until") else None,
            request_id=message.request_id,
        )
    except ValueError:
        await context.abort(
            grpc.StatusCode.INVALID_ARGUMENT, "since and until are instants between year 1 and 9999"
        )


def _instant(timestamp: Timestamp) -> datetime:
    return timestamp.ToDatetime(tzinfo=UTC)
