"""Opens the secrets of credentials for the nodes that need them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import structlog

from controlplane.secrets.sealing import Sealer, SealingError

_log: Final = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class SealedSecret:
    """A credential's secret as it rests in the database."""

    credential_id: str
    version: int
    sealed: bytes

    def __repr__(self) -> str:
        return f"SealedSecret({self.credential_id}, version {self.version})"


SecretOpener = Callable[[SealedSecret], bytes | None]
"""Returns a credential's secret, or None when it cannot be opened: then the credential travels without, and its node
refuses calls that need it."""


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
