"""What a revocation answers with."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class AppliedRevocation:
    """One node that refuses the subject; `ms` from the commit to its acknowledgement."""

    node: str
    ms: int


@dataclass(frozen=True, slots=True)
class Receipt:
    """Who obeys a revocation by now: live nodes that said so, and live nodes that did not within the wait."""

    revision: int
    applied: tuple[AppliedRevocation, ...] = ()
    missing: tuple[str, ...] = ()
