"""The layers of requests that are counted without a stack around them, all out of reach."""

from typing import Final

from dataplane.domain.limiting import Layer, LayerPlan, SubjectKind, Unit, Window, plan_of

_FAR: Final = 10**12
_FAR_NANOUSD: Final = 8 * 10**15
_HOUR_MS: Final = 3_600_000
_MOST_CALLS: Final = 1_000


def thirteen_layers() -> LayerPlan:
    """Return the layers of one caller: every kind, in the numbers of a busy organization."""
    organization, user, key = "o_1", "u_1", "k_1"
    return plan_of(
        [
            _rate(SubjectKind.GLOBAL, ""),
            _budget(SubjectKind.GLOBAL, "", Window.DAY),
            Layer(SubjectKind.ORGANIZATION, organization, Unit.REQUESTS, Window.MINUTE, _FAR),
            Layer(SubjectKind.ORGANIZATION, organization, Unit.TOKENS, Window.MONTH, _FAR),
            _budget(SubjectKind.ORGANIZATION, organization, Window.MONTH),
            Layer(SubjectKind.ORGANIZATION, organization, Unit.PARALLEL, Window.NONE, _FAR),
            Layer(SubjectKind.USER, user, Unit.REQUESTS, Window.MINUTE, _FAR),
            Layer(SubjectKind.USER, user, Unit.TOKENS, Window.MINUTE, _FAR),
            Layer(SubjectKind.USER, user, Unit.REQUESTS, Window.DAY, _FAR),
            _budget(SubjectKind.USER, user, Window.MONTH, is_hard=False),
            _rate(SubjectKind.KEY, key),
            Layer(SubjectKind.KEY, key, Unit.TOKENS, Window.DAY, _FAR),
            Layer(SubjectKind.KEY, key, Unit.PARALLEL, Window.NONE, _FAR),
        ]
    )


def ten_layers_of_one(number: int) -> LayerPlan:
    """Return ten layers that nobody but one user and one key have; `number` tells users apart."""
    user, key = f"u{number:015x}", f"k{number:011x}"
    return plan_of(
        [
            # So slow that its counter is still there when all users have called.
            Layer(
                SubjectKind.USER,
                user,
                Unit.REQUESTS,
                Window.RATE,
                60,
                every_ms=_HOUR_MS,
                burst=_MOST_CALLS,
            ),
            Layer(SubjectKind.USER, user, Unit.REQUESTS, Window.MINUTE, _FAR),
            Layer(SubjectKind.USER, user, Unit.TOKENS, Window.MINUTE, _FAR),
            Layer(SubjectKind.USER, user, Unit.REQUESTS, Window.DAY, _FAR),
            Layer(SubjectKind.USER, user, Unit.TOKENS, Window.DAY, _FAR),
            _budget(SubjectKind.USER, user, Window.MONTH),
            Layer(SubjectKind.USER, user, Unit.PARALLEL, Window.NONE, _FAR),
            Layer(SubjectKind.KEY, key, Unit.REQUESTS, Window.MINUTE, _FAR),
            Layer(SubjectKind.KEY, key, Unit.REQUESTS, Window.DAY, _FAR),
            _budget(SubjectKind.KEY, key, Window.MONTH),
        ]
    )


def _rate(kind: SubjectKind, subject_id: str) -> Layer:
    return Layer(kind, subject_id, Unit.REQUESTS, Window.RATE, 100_000, every_ms=1000, burst=10**9)


def _budget(kind: SubjectKind, subject_id: str, window: Window, *, is_hard: bool = True) -> Layer:
    return Layer(kind, subject_id, Unit.SPEND, window, _FAR_NANOUSD, is_hard=is_hard)
