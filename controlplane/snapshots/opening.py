"""Opens the secrets of credentials for the nodes that need them."""

from typing import Final

import structlog

from controlplane.secrets.sealing import Sealer, SealingError
from controlplane.snapshots.snapshot import SealedSecret
from controlplane.snapshots.transfers import SecretOpener

_log: Final = structlog.get_logger(__name__)


def secret_opener(sealer: Sealer) -> SecretOpener:
    """Return a function that opens sealed secrets, and None where that fails.

    A secret that cannot be opened takes one provider out of service and not the distribution of
    everything else; it is logged once for each version.
    """
    reported: set[tuple[str, int]] = set()

    def open_secret(sealed: SealedSecret) -> bytes | None:
        try:
            return sealer.open(sealed.credential_id, sealed.version, sealed.sealed).reveal()
        except SealingError as error:
            if (sealed.credential_id, sealed.version) not in reported:
                reported.add((sealed.credential_id, sealed.version))
                _log.error("credential not distributed", problem=str(error))
            return None

    return open_secret
