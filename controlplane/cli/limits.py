"""`tollkeeper limit`: how much a subject may use."""

from typing import TYPE_CHECKING, Annotated, Final

import typer

from controlplane.cli.connection import admin_channel
from controlplane.cli.layers import GivenLayers, LayerName, empty_limit, takes_layers
from controlplane.cli.lazy_modules import imported_on_use
from controlplane.cli.options import Output
from controlplane.cli.output import Format, print_many, print_one
from controlplane.cli.paging import all_pages
from controlplane.cli.subject_limits import (
    LIMIT_COLUMNS,
    End,
    Only,
    Period,
    end_of,
    limit_rows,
    print_limits,
    print_resets,
    reset_counters,
    set_limits,
    set_temporary_limits,
)
from controlplane.cli.subjects import Subject, takes_subject, takes_subject_or_tier
from controlplane.cli.tier_layers import Counted, change_limits, remove_user_limits
from controlplane.cli.typer_apps import example, new_app
from controlplane.cli.waiting import waits

if TYPE_CHECKING:
    from tollkeeper.admin.v1 import (
        changes_pb2,
        operations_service_pb2,
        operations_service_pb2_grpc,
        tier_service_pb2,
        tier_service_pb2_grpc,
    )
    from tollkeeper.admin.v1 import limit_service_pb2 as pb
    from tollkeeper.admin.v1 import limit_service_pb2_grpc as rpc
else:
    changes_pb2 = imported_on_use("tollkeeper.admin.v1.changes_pb2")
    operations_service_pb2 = imported_on_use("tollkeeper.admin.v1.operations_service_pb2")
    operations_service_pb2_grpc = imported_on_use("tollkeeper.admin.v1.operations_service_pb2_grpc")
    tier_service_pb2 = imported_on_use("tollkeeper.admin.v1.tier_service_pb2")
    tier_service_pb2_grpc = imported_on_use("tollkeeper.admin.v1.tier_service_pb2_grpc")
    pb = imported_on_use("tollkeeper.admin.v1.limit_service_pb2")
    rpc = imported_on_use("tollkeeper.admin.v1.limit_service_pb2_grpc")

app = new_app(
    "Limits of the service, of organizations, users, keys, devices, addresses, endpoint classes, models and tiers."
)

# The data plane that maintains the counters has to be asked, and may be busy.
MAINTENANCE_S: Final = 70.0


@app.command(
    "set",
    epilog=example(
        "limit set --user acme/alice --requests-per-minute 5 --tokens-per-day 100000",
        "limit set --key acme/alice/laptop --requests 10 --every 1s --burst 20",
        "limit set --org acme --monthly-budget-usd 100 --soft",
        "limit set --ip 203.0.113.7 --requests-per-day 100",
        "limit set --endpoint images --requests-per-second 2",
        "limit set --model gpt-4o --tokens-per-minute 200000",
        "limit set --tier free --requests-per-day 500",
    ),
)
@waits
@takes_layers
@takes_subject_or_tier
def set_given(layers: GivenLayers, subject: Subject, output: Output = Format.TABLE) -> None:
    """Set the given limits of a subject, and leave its others as they are.

    Counters go on: a lowered limit counts what was used already. A tier's are those of each of its users;
    `tier update` sets its others.
    """
    limits = layers.required()
    with admin_channel() as channel:
        if subject.tier is not None:
            changed = change_limits(channel, subject.tier, {Counted.USER: limits})
            print_limits(_of_users(changed), output)
        else:
            print_limits(set_limits(channel, str(subject), limits), output)


@app.command(
    epilog=example(
        "limit get --user acme/alice", "limit get --global -o json", "limit get --tier free"
    )
)
@takes_subject_or_tier
def get(subject: Subject, output: Output = Format.TABLE) -> None:
    """Show the limits that a subject has of its own, and what takes their place for now."""
    with admin_channel() as channel:
        if subject.tier is not None:
            tiers = tier_service_pb2_grpc.TierServiceStub(channel)
            found = tiers.GetTier(tier_service_pb2.GetTierRequest(name=subject.tier))
            print_limits(_of_users(found), output)
        else:
            service = rpc.LimitServiceStub(channel)
            print_limits(service.GetLimits(pb.GetLimitsRequest(subject=str(subject))), output)


@app.command("list", epilog=example("limit list"))
def list_all(output: Output = Format.TABLE) -> None:
    """List all subjects that have limits, by name."""
    with admin_channel() as channel:
        found = all_pages(
            rpc.LimitServiceStub(channel).ListLimits,
            pb.ListLimitsRequest(),
            lambda page: page.limits,
        )
        if output is Format.TABLE:
            rows = (row for limits in found for row in limit_rows(limits))
            print_many(rows, output, LIMIT_COLUMNS)
        else:
            print_many(found, output, LIMIT_COLUMNS)


@app.command(
    epilog=example(
        "limit delete --user acme/alice --only tokens-per-day",
        "limit delete --key acme/alice/laptop",
        "limit delete --org acme --temporary",
    )
)
@waits
@takes_subject_or_tier
def delete(
    subject: Subject,
    only: Only = None,
    temporary: Annotated[
        bool, typer.Option("--temporary", help="What `limit override` set, and nothing else.")
    ] = False,
    output: Output = Format.TABLE,
) -> None:
    """Remove limits of a subject, which then has the defaults of its tier or of the service."""
    if subject.tier is not None and temporary:
        raise typer.BadParameter("a tier has no temporary limits")
    with admin_channel() as channel:
        if subject.tier is not None:
            revision = remove_user_limits(channel, subject.tier, only).revision
            print_one(changes_pb2.DeleteResult(revision=revision), output)
        else:
            request = pb.DeleteLimitsRequest(
                subject=str(subject),
                limits=[empty_limit(name) for name in only or ()],
                temporary_only=temporary,
            )
            print_one(rpc.LimitServiceStub(channel).DeleteLimits(request), output)


@app.command(
    epilog=example(
        "limit override --user acme/alice --requests-per-day 5000 --for 24h",
        "limit override --org acme --tokens-per-minute none --until 2099-01-31T18:00:00Z",
    )
)
@waits
@takes_layers
@takes_subject
def override(
    layers: GivenLayers,
    subject: Subject,
    period: Period = None,
    end: End = None,
    output: Output = Format.TABLE,
) -> None:
    """Set limits for a while, in place of a subject's own, of its tier's or of the defaults.

    What is set again ends as said last. Counters go on.
    """
    limits, until = layers.required(), end_of(period, end)
    with admin_channel() as channel:
        print_limits(set_temporary_limits(channel, str(subject), limits, until), output)


@app.command(
    epilog=example(
        "limit reset --user acme/alice",
        "limit reset --key acme/alice/laptop --only requests-per-day",
    )
)
@waits
@takes_subject
def reset(subject: Subject, only: Only = None, output: Output = Format.TABLE) -> None:
    """Let counters of a subject start anew. Requests in flight go on, and what was spent stays in the ledger."""
    if only and LayerName.PARALLEL in only:
        raise typer.BadParameter("requests in flight cannot be reset: they end by themselves")
    with admin_channel() as channel:
        print_resets(reset_counters(channel, str(subject), only or ()), output)


@app.command("reset-clock", epilog=example("limit reset-clock"))
def reset_clock(output: Output = Format.TABLE) -> None:
    """Let the limiter's time go back to the clock of Redis, after that clock was far ahead for a while."""
    with admin_channel() as channel:
        service = operations_service_pb2_grpc.OperationsServiceStub(channel)
        request = operations_service_pb2.ResetLimiterClockRequest()
        print_one(service.ResetLimiterClock(request, timeout=MAINTENANCE_S), output)


def _of_users(tier: "tier_service_pb2.Tier") -> "pb.SubjectLimits":
    """Return what a tier sets for each of its users, in the form of other subjects' limits."""
    return pb.SubjectLimits(
        subject=f"tier:{tier.name}",
        limits=tier.user_limits,
        revision=tier.revision,
        etag=tier.etag,
        updated_at=tier.updated_at if tier.HasField("updated_at") else None,
    )
