"""What `tollkeeper doctor` finds: one finding for each thing that it looks at."""

from dataclasses import asdict, dataclass

from controlplane.cli.plain import Record


@dataclass(frozen=True, slots=True)
class Finding:
    """What was looked at, whether it is well, what was seen, and what to do. It never holds a secret."""

    check: str
    ok: bool
    detail: str
    # Empty when there is nothing to do.
    advice: str = ""

    def record(self) -> Record:
        """Return it as data."""
        return asdict(self)


def well(check: str, detail: str) -> Finding:
    """Return a finding of something that is as it should be."""
    return Finding(check, ok=True, detail=detail)


def unwell(check: str, detail: str, advice: str) -> Finding:
    """Return a finding of something that is wrong, and what to do."""
    return Finding(check, ok=False, detail=detail, advice=advice)
