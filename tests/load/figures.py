"""What a benchmark says: figures, which of them are void, and how they are written down."""

from collections.abc import Sequence
from typing import Final

import msgspec

# Above this share of what the harness itself reaches, a figure says more about the harness.
VOID_SHARE: Final = 0.7
# Below this share of its core, the measured process was not what held the figure down.
SATURATED_SHARE: Final = 0.9


class Figure(msgspec.Struct, frozen=True):
    """One measured value.

    Attributes:
        ceiling: What the harness reaches for the same without the data plane; None where the
            figure is no rate.
        note: What a reader has to know beside it.
    """

    name: str
    value: float
    unit: str
    ceiling: float | None = None
    note: str = ""

    @property
    def is_void(self) -> bool:
        """Whether the harness rather than the data plane may have set the value."""
        return self.ceiling is not None and self.value > VOID_SHARE * self.ceiling

    @property
    def remarks(self) -> str:
        """What stands beside the value."""
        void = f"void: above 70 % of the harness's {rounded(self.ceiling or 0.0)}"
        return "; ".join(filter(None, (void if self.is_void else "", self.note)))


class Report(msgspec.Struct, frozen=True):
    """The figures of one run, and what they were measured on. It names no host and no path."""

    date: str
    commit: str
    python: str
    cpu: str
    cores: int
    placement: str
    seconds_per_phase: float
    layers: int
    figures: tuple[Figure, ...]

    @property
    def title(self) -> str:
        """One line that tells runs apart."""
        return (
            f"{self.date}, commit {self.commit}, Python {self.python}, {self.cpu}, "
            f"{self.cores} cores, {self.seconds_per_phase:g} s per phase, {self.layers} limit layers"
        )


def percentile(ordered: Sequence[float], percent: float) -> float:
    """Return the smallest value that at least `percent` of `ordered` do not exceed.

    Raises:
        ValueError: There is no value, or `percent` is not above 0 and at most 100.
    """
    if not ordered or not 0 < percent <= 100:
        raise ValueError("a percentile needs values, and a share above 0 and at most 100")
    rank = -(-len(ordered) * percent // 100)
    return ordered[int(rank) - 1]


def rounded(value: float) -> str:
    """Return `value` with three digits that count: `12,345`, `12.3`, `0.123`."""
    size = abs(value)
    if size >= 100:
        return f"{value:,.0f}"
    if size >= 10:
        return f"{value:.1f}"
    return f"{value:.2f}" if size >= 1 else f"{value:.3f}"


def as_line(figure: Figure) -> str:
    """Return a figure as a line for people."""
    remarks = f"  ({figure.remarks})" if figure.remarks else ""
    return f"  {figure.name:<48} {rounded(figure.value):>9} {figure.unit}{remarks}"


def as_markdown(report: Report) -> str:
    """Return a run as a section of `docs/benchmarks.md`."""
    lines = [f"## {report.title}", "", f"{report.placement}.", ""]
    lines += ["| figure | value | unit | remarks |", "|---|--:|---|---|"]
    lines += [
        f"| {each.name} | {rounded(each.value)} | {each.unit} | {each.remarks} |"
        for each in report.figures
    ]
    return "\n".join(lines) + "\n"


def as_json(report: Report) -> bytes:
    """Return a run as one JSON document, each figure with whether it is void."""
    plain = msgspec.to_builtins(report)
    for written, figure in zip(plain["figures"], report.figures, strict=True):
        written["void"] = figure.is_void
    return msgspec.json.encode(plain)


def per_unit_us(cpu_s: float, count: int) -> float:
    """Return CPU microseconds per one of `count`; 0 when there was none."""
    return cpu_s / count * 1e6 if count else 0.0
