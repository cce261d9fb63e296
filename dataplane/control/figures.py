"""What can be counted of the configuration stream, for metrics and health."""

from dataclasses import dataclass, field


@dataclass(slots=True)
class StreamFigures:
    """Figures of one process; its stream writes them, anybody reads them.

    Attributes:
        is_connected: A control plane said Welcome on a stream that is open.
        control_plane_id: Which one, last.
        protocol_version: What is spoken with it; 0 before the first.
        heard_at: When a control plane was last heard, `time.monotonic()`; None: never.
        known_epoch: The epoch of the newest position that a control plane told of.
        known_revision: Its revision.
        applied_at_ms: When a transfer was last put in force, Unix milliseconds; 0: none was.
        apply_ms: How long that took, from its last chunk on.
        quarantined: Leaves that are set aside now.
        reconnects_total: Streams opened after the first.
        transfer_bytes_total: Bytes of chunks received.
        transfers_total: Complete transfers, by `none`, `delta`, `full`.
        nacks_total: Refused transfers, by `digest`, `position`, `invalid`, `guard`.
        revocations_total: Revocations heard.
        unkept_revocations_total: Those that are not on the disk although they ought to be.
    """

    is_connected: bool = False
    control_plane_id: str = ""
    protocol_version: int = 0
    heard_at: float | None = None
    known_epoch: str = ""
    known_revision: int = 0
    applied_at_ms: int = 0
    apply_ms: int = 0
    quarantined: int = 0
    reconnects_total: int = 0
    transfer_bytes_total: int = 0
    transfers_total: dict[str, int] = field(
        default_factory=lambda: dict.fromkeys(("none", "delta", "full"), 0)
    )
    nacks_total: dict[str, int] = field(
        default_factory=lambda: dict.fromkeys(("digest", "position", "invalid", "guard"), 0)
    )
    revocations_total: int = 0
    unkept_revocations_total: int = 0
