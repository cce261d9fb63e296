"""What a revocation answers with, and what waiting for a change does."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class AppliedRevocation:
    """One node that refuses the subject; `ms` from the commit to its acknowledgement.

    `is_kept`: it does after a restart without a control plane too.
    """

    node: str
    ms: int
    is_kept: bool = False


@dataclass(frozen=True, slots=True)
class Receipt:
    """Who obeys a revocation by now: live nodes that said so, and live nodes that did not within the wait."""

    revision: int
    applied: tuple[AppliedRevocation, ...] = ()
    missing: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class AppliedChange:
    """One node that has applied a change; `ms` from the commit to its acknowledgement."""

    node: str
    ms: int


@dataclass(frozen=True, slots=True)
class Propagation:
    """Who has applied a change by now: live nodes that said so, and live nodes that did not within the wait."""

    revision: int
    applied: tuple[AppliedChange, ...] = ()
    missing: tuple[str, ...] = ()
