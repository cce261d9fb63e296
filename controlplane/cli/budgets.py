"""`tollkeeper budget`: limits of money, and how far they are used."""

from typing import TYPE_CHECKING, Final

import typer

from controlplane.cli.connection import admin_channel
from controlplane.cli.layers import BUDGETS, GivenLayers, LayerName, takes_budgets
from controlplane.cli.lazy_modules import imported_on_use
from controlplane.cli.options import Output
from controlplane.cli.output import Format, print_many
from controlplane.cli.paging import all_pages
from controlplane.cli.plain import Plain, Record, record_of
from controlplane.cli.subject_limits import (
    End,
    Only,
    Period,
    end_of,
    print_limits,
    print_resets,
    reset_counters,
    set_temporary_limits,
)
from controlplane.cli.subjects import Subject, may_take_subject, takes_subject
from controlplane.cli.typer_apps import example, new_app
from controlplane.cli.waiting import waits

if TYPE_CHECKING:
    from tollkeeper.admin.v1 import budget_service_pb2 as pb
    from tollkeeper.admin.v1 import budget_service_pb2_grpc as rpc
else:
    pb = imported_on_use("tollkeeper.admin.v1.budget_service_pb2")
    rpc = imported_on_use("tollkeeper.admin.v1.budget_service_pb2_grpc")

app = new_app("Budgets: limits of money, and how far they are used. `limit set` sets them.")

_COLUMNS: Final = (
    "subject",
    "window",
    "period_id",
    "capacity_nanousd",
    "spent_nanousd",
    "used",
    "soft",
    "shadow",
    "temporary_until",
)
_EVENT_COLUMNS: Final = (
    "reached_at",
    "subject",
    "window",
    "period_id",
    "percent",
    "capacity_nanousd",
    "settled_nanousd",
    "held_nanousd",
)


@app.command("list", epilog=example("budget list", "budget list --user acme/alice -o json"))
@may_take_subject
def list_all(subject: Subject | None, output: Output = Format.TABLE) -> None:
    """List budgets and what the ledger says was spent of them in their running period, by subject.

    Of a subject that is named, also those that come from its tier or from the service's defaults. Calls by a key or device
    with a tier of its own have the budgets that this tier sets for users, not those of the user's tier, which are shown.
    """
    with admin_channel() as channel:
        found = all_pages(
            rpc.BudgetServiceStub(channel).ListBudgets,
            pb.ListBudgetsRequest(subject=_text(subject)),
            lambda page: page.budgets,
        )
        shown = _row if output is Format.TABLE else record_of
        print_many(map(shown, found), output, _COLUMNS)


@app.command(epilog=example("budget events --org acme", "budget events -o json"))
@may_take_subject
def events(subject: Subject | None, output: Output = Format.TABLE) -> None:
    """List when budgets were used to 80 and to 100 percent, newest first: once each in a period."""
    with admin_channel() as channel:
        found = all_pages(
            rpc.BudgetServiceStub(channel).ListBudgetEvents,
            pb.ListBudgetEventsRequest(subject=_text(subject)),
            lambda page: page.events,
        )
        shown = _event_row if output is Format.TABLE else record_of
        print_many(map(shown, found), output, _EVENT_COLUMNS)


@app.command(
    epilog=example(
        "budget override --user acme/alice --monthly-budget-usd 200 --for 24h",
        "budget override --global --daily-budget-usd 100 --until 2099-01-31",
    )
)
@waits
@takes_budgets
@takes_subject
def override(
    layers: GivenLayers,
    subject: Subject,
    period: Period = None,
    end: End = None,
    output: Output = Format.TABLE,
) -> None:
    """Set budgets for a while, in place of those that a subject has. What was spent already counts."""
    limits, until = layers.required(), end_of(period, end)
    with admin_channel() as channel:
        print_limits(set_temporary_limits(channel, str(subject), limits, until), output)


@app.command(
    epilog=example(
        "budget reset --user acme/alice", "budget reset --org acme --only monthly-budget-usd"
    )
)
@waits
@takes_subject
def reset(subject: Subject, only: Only = None, output: Output = Format.TABLE) -> None:
    """Let what a subject has spent of its budgets count from 0 again. What was spent stays in the ledger."""
    names: tuple[LayerName, ...] = tuple(only) if only else BUDGETS
    if not set(names) <= set(BUDGETS):
        raise typer.BadParameter(f"budgets are {', '.join(BUDGETS)}; `limit reset` resets others")
    with admin_channel() as channel:
        print_resets(reset_counters(channel, str(subject), names), output)


def _text(subject: Subject | None) -> str:
    return str(subject) if subject else ""


def _row(budget: "pb.Budget") -> Record:
    used: Plain = None
    if budget.capacity_nanousd:
        used = f"{budget.spent_nanousd * 100 // budget.capacity_nanousd} %"
    return {**record_of(budget), "used": used}


def _event_row(event: "pb.BudgetEvent") -> Record:
    return {**record_of(event.counter), **record_of(event)}
