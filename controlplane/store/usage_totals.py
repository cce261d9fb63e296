"""What subjects used by period and reset generation: sums that are kept, so that a counter is compared in no time.

They move in the transaction of each change of the ledger, by the difference, so they are always what its rows add up to. A
row counts for everybody whom limits may count it for: the service, its organization, user, key or device, its client's
address, its endpoint class and its model; each over a day, a month and for ever. What is limited separately may be reset
separately: a row's `generations` say in which generation a unit was counted, and the unit moves the sum of that one.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final, NamedTuple

from sqlalchemy import Table, bindparam, column, func, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

from controlplane.domain.counters import TOTAL_PERIOD, UNITS, WINDOWS, layer_name
from controlplane.domain.limits import LimitUnit
from controlplane.domain.names import SubjectKind
from controlplane.domain.usage import UsageState
from controlplane.store.tables import UsageTotal

TOTALS: Final[Table] = UsageTotal.metadata.tables["usage_totals"]

LEDGER_COLUMNS: Final = (
    "state",
    "organization_id",
    "user_id",
    "key_id",
    "device_id",
    "endpoint",
    "model",
    "address_subjects",
    "usage_day",
    "usage_month",
    "service_day",
    "generations",
    "input_total_tokens",
    "output_tokens",
    "reserved_tokens",
    "charged_nanousd",
)
"""The columns of a row of the ledger that its sums depend on."""

# A plain number, as those of subjects below.
_ABANDONED: Final = int(UsageState.ABANDONED)
_MONTH_DIGITS: Final = 6
# More than a batch of records moves. Of a recount they go in parts, so that others of this process get their turn.
_SUMS_AT_ONCE: Final = 5_000

Row = Mapping[str, Any]  # Any: a value of any column
# Plain numbers: those of an enum are hashed in Python, tens of thousands of times in a batch.
_Key = tuple[str, int, str, int]
Moves = defaultdict[_Key, list[int]]
"""By how much sums move: requests, tokens and nano-USD, by period, subject kind, subject id and reset generation."""

_GLOBAL, _IP = int(SubjectKind.GLOBAL), int(SubjectKind.IP)
_OF_ORGANIZATIONS: Final = (
    (int(SubjectKind.ORGANIZATION), "organization_id"),
    (int(SubjectKind.USER), "user_id"),
    (int(SubjectKind.KEY), "key_id"),
    (int(SubjectKind.DEVICE), "device_id"),
)
_OF_THE_SERVICE: Final = (
    (int(SubjectKind.ENDPOINT), "endpoint"),
    (int(SubjectKind.MODEL), "model"),
)
_SHARED: Final = frozenset(
    {_GLOBAL, *map(int, (SubjectKind.ORGANIZATION, SubjectKind.ENDPOINT, SubjectKind.MODEL))}
)
# Layer name → subject kind, window and which of the three amounts.
_PLACES: Final = {
    layer_name(kind, unit, window): (int(kind), WINDOWS.index(window), UNITS.index(unit))
    for kind in SubjectKind
    for unit in UNITS
    for window in WINDOWS
}
_AMOUNTS: Final = {
    LimitUnit.REQUESTS: "requests",
    LimitUnit.TOKENS: "tokens",
    LimitUnit.SPEND: "charged_nanousd",
}


class Sum(NamedTuple):
    """What a subject used in a period, in a reset generation; money in nano-USD."""

    period_id: str
    subject_kind: int
    subject_id: str
    reset_generation: int
    requests: int
    tokens: int
    charged_nanousd: int

    def amount_of(self, unit: LimitUnit) -> int:
        """Return the sum of one unit: requests, tokens or spend."""
        return int(self[AMOUNT_INDEX[unit]])


AMOUNT_INDEX: Final = {unit: Sum._fields.index(name) for unit, name in _AMOUNTS.items()}
"""Where the sum of a unit stands in a `Sum`."""


async def move(connection: AsyncConnection, *, added: Iterable[Row], taken: Iterable[Row]) -> None:
    """Add rows of the ledger to the sums of their subjects, and take away what they replaced.

    Args:
        connection: In the transaction that changes the ledger.
        added: Rows that count from now on; none is `released`. They have the `LEDGER_COLUMNS`.
        taken: What counted before and does not any more.
    """
    moves = no_moves()
    add_up(moves, added)
    add_up(moves, taken, sign=-1)
    await apply(connection, moves)


def no_moves() -> Moves:
    """Return what moves nothing yet."""
    return defaultdict(lambda: [0, 0, 0])


async def apply(connection: AsyncConnection, moves: Moves) -> None:
    """Move each sum by what `moves` says."""
    # In one order everywhere, so that two batches cannot wait for each other; what all of them share comes last, so
    # that one which waits for another has done its own work by then.
    keys = sorted(
        (key for key, amounts in moves.items() if any(amounts)),
        key=lambda key: (key[1] in _SHARED, key),
    )
    for start in range(0, len(keys), _SUMS_AT_ONCE):
        rows = [(*key, *moves[key]) for key in keys[start : start + _SUMS_AT_ONCE]]
        if connection.dialect.name == "postgresql":
            # One statement of seven lists: thousands of statements, even sent together, take ten times as long.
            values = dict(zip(Sum._fields, map(list, zip(*rows, strict=True)), strict=True))
            await connection.execute(_POSTGRESQL_UPSERT, values)
        else:
            await connection.execute(
                _SQLITE_UPSERT, [dict(zip(Sum._fields, row, strict=True)) for row in rows]
            )


def _upsert(insert: Any) -> Any:  # Any: the two dialects share no type of Insert
    amounts = {name: TOTALS.c[name] + insert.excluded[name] for name in _AMOUNTS.values()}
    return insert.on_conflict_do_update(index_elements=list(TOTALS.primary_key), set_=amounts)


def _given_lists() -> Any:  # Any: a select of columns that are made here
    columns = [TOTALS.c[name] for name in Sum._fields]
    lists = [bindparam(each.name, type_=postgresql.ARRAY(each.type)) for each in columns]
    names = [column(each.name, each.type) for each in columns]
    given = func.unnest(*lists).table_valued(*names, name="given").render_derived()
    return select(*given.c)


_SQLITE_UPSERT: Final = _upsert(sqlite.insert(TOTALS))
_POSTGRESQL_UPSERT: Final = _upsert(
    postgresql.insert(TOTALS).from_select(Sum._fields, _given_lists())
)


def add_up(moves: Moves, rows: Iterable[Row], sign: int = 1) -> None:
    """Add to `moves` by how much rows of the ledger move each sum; with -1, by how much it moves when they go."""
    for row in rows:
        amounts = (sign, sign * _tokens_of(row), sign * row["charged_nanousd"])
        requests, tokens, money = amounts
        raised = _raised_generations(row["generations"])
        for kind, subject_id, periods in _counted_by(row):
            for window, period_id in enumerate(periods):
                if not period_id:
                    continue
                generations = raised.get((kind, window))
                if generations is None:
                    # As a rule: all three in one look-up.
                    sums = moves[period_id, kind, subject_id, 0]
                    sums[0] += requests
                    sums[1] += tokens
                    sums[2] += money
                    continue
                for index, generation in enumerate(generations):
                    moves[period_id, kind, subject_id, generation][index] += amounts[index]


def _tokens_of(row: Row) -> int:
    """Return what counts against limits of tokens: of a request whose owner died, what it reserved."""
    if row["state"] == _ABANDONED:
        return int(row["reserved_tokens"])
    return int(row["input_total_tokens"] + row["output_tokens"])


def _counted_by(row: Row) -> Iterator[tuple[int, str, tuple[str, str, str]]]:
    """Yield the kind and id of everybody whom a row counts for, with its day, its month and the whole time."""
    own = row["usage_day"], row["usage_month"], TOTAL_PERIOD
    service_day = row["service_day"]
    service = service_day, service_day[:_MONTH_DIGITS], TOTAL_PERIOD
    yield _GLOBAL, "", service
    for kind, name in _OF_ORGANIZATIONS:
        if row[name]:
            yield kind, row[name], own
    for subject_id in row["address_subjects"]:
        yield _IP, subject_id, service
    for kind, name in _OF_THE_SERVICE:
        if row[name]:
            yield kind, row[name], service


def _raised_generations(items: Iterable[Row]) -> dict[tuple[int, int], list[int]]:
    """Return by subject kind and window in which generation each unit was counted; what was never reset has none."""
    raised: dict[tuple[int, int], list[int]] = {}
    for item in items:
        place = _PLACES.get(item["layer"])
        if place is not None:
            kind, window, unit = place
            raised.setdefault((kind, window), [0, 0, 0])[unit] = item["reset_generation"]
    return raised
