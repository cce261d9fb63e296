"""What a node keeps on its disk, so that a restart without a control plane serves and still refuses."""

from dataclasses import dataclass

from dataplane.control.holdings import Change


@dataclass(frozen=True, slots=True)
class KeptRevocation:
    """Something that is refused, whatever an older configuration says of it.

    Attributes:
        kind: `key`, `user`, `organization` or `device`.
        subject_id: Which of that kind.
        organization_id: Whose it is; empty when it is nobody's.
        config_epoch: The epoch of `revision`.
        revision: Configurations of that epoch at or above it contain the revocation.
        at_ms: When the node heard of it, Unix milliseconds.
    """

    kind: str
    subject_id: str
    organization_id: str
    config_epoch: str
    revision: int
    at_ms: int


@dataclass(frozen=True, slots=True)
class Kept:
    """What an earlier process left.

    Attributes:
        change: The whole configuration (`is_everything`), its digest verified; None: there is none that
            can be read.
        revocations: What is known to be refused, whatever the next configuration says.
        is_complete: Nothing else was refused, as far as this node heard; else serving `change` might let
            somebody in who was shut out.
    """

    change: Change | None
    revocations: tuple[KeptRevocation, ...]
    is_complete: bool = True
