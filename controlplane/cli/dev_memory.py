"""What `tollkeeper dev` remembers from one start to the next.

Two files: `seeded` says which database holds the demonstration's resources, where its mock provider was and which real
providers were registered, their keys as digests only; `credentials.json` holds what the user was shown, and the only copy
of the key's text.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from controlplane.cli.dev_providers import RealProvider
from controlplane.cli.dev_secrets import read_json, write_json
from controlplane.cli.endpoints import DialectName

_SEEDED: Final = "seeded"
_CREDENTIALS: Final = "credentials.json"
_PROVIDERS: Final = "providers"


class Memory:
    """The remembered state of one data directory, whose lock the caller holds."""

    def __init__(self, data_dir: Path, database_url: str | None) -> None:
        """Read what is remembered, and forget it if it speaks of another database.

        Args:
            data_dir: The data directory of `dev`.
            database_url: The user's own database; None for the embedded one.
        """
        self._seeded_file = data_dir / _SEEDED
        self._credentials_file = data_dir / _CREDENTIALS
        # A digest, because the address may hold a password.
        self._database = hashlib.sha256((database_url or "embedded").encode()).hexdigest()
        self._seeded = read_json(self._seeded_file)
        self._credentials = read_json(self._credentials_file)
        embedded = data_dir / "controlplane" / "controlplane.sqlite"
        is_gone = database_url is None and not embedded.exists()
        if is_gone or self._seeded.get("database") != self._database:
            self._forget()

    @property
    def is_seeded(self) -> bool:
        """Whether everything was created once; from then on it is the administrator's."""
        return self._seeded.get("is_complete") is True

    @property
    def mock_url(self) -> str | None:
        """Where the mock provider was when the configuration last learned of it."""
        url = self._seeded.get("mock_url")
        return url if isinstance(url, str) else None

    @property
    def mock_port(self) -> int:
        """The port of `mock_url`; 0 when there is none."""
        return (urlsplit(self.mock_url).port or 0) if self.mock_url else 0

    @property
    def api_key(self) -> str | None:
        """The text of the key, if it was created in this database."""
        api_key = self._credentials.get("api_key")
        return api_key if isinstance(api_key, str) and api_key else None

    def keep_api_key(self, api_key: str) -> None:
        """Write the key's text down at once: it is shown only when the key is created."""
        self.keep_credentials({**self._credentials, "api_key": api_key})

    def keep_credentials(self, credentials: Mapping[str, object]) -> None:
        """Write down what the user is shown."""
        self._credentials = dict(credentials)
        write_json(self._credentials_file, self._credentials)

    def keep_seeded(self, mock_url: str) -> None:
        """Write down that everything is created and points to `mock_url`."""
        self._seeded |= {"database": self._database, "is_complete": True, "mock_url": mock_url}
        write_json(self._seeded_file, self._seeded)

    def is_registered(self, provider: RealProvider) -> bool:
        """Whether a real provider was registered as it is now: from then on it is the administrator's."""
        known = self._registered(provider.name)
        endpoints = known.get("endpoints")
        return (
            known.get("secret_sha256") == provider.secret_sha256
            and isinstance(endpoints, list)
            and endpoints[-1:] == [dict(provider.endpoints)]
        )

    def former_endpoints(self, provider: RealProvider) -> list[Mapping[DialectName, str]]:
        """Return where earlier starts said that a real provider is, oldest first."""
        endpoints = self._registered(provider.name).get("endpoints")
        return [
            {DialectName(dialect): str(url) for dialect, url in each.items()}
            for each in (endpoints if isinstance(endpoints, list) else ())
        ]

    def begin_registration(self, provider: RealProvider) -> None:
        """Write down where a real provider will be, so that a start that dies meanwhile is finished by the next."""
        self._keep_registration(provider, secret_sha256=None)

    def keep_registration(self, provider: RealProvider) -> None:
        """Write down that a real provider is registered as it is now."""
        self._keep_registration(provider, secret_sha256=provider.secret_sha256)

    def _keep_registration(self, provider: RealProvider, *, secret_sha256: str | None) -> None:
        now = dict(provider.endpoints)
        former = [each for each in self.former_endpoints(provider) if each != now]
        registered = {"endpoints": [*former, now], "secret_sha256": secret_sha256}
        self._seeded[_PROVIDERS] = {**self._all_registered(), provider.name: registered}
        write_json(self._seeded_file, self._seeded)

    def _registered(self, name: str) -> Mapping[str, object]:
        known = self._all_registered().get(name)
        return known if isinstance(known, dict) else {}

    def _all_registered(self) -> Mapping[str, object]:
        known = self._seeded.get(_PROVIDERS)
        return known if isinstance(known, dict) else {}

    def _forget(self) -> None:
        """Begin anew with this database; the credentials of another one are of no use."""
        self.keep_credentials({})
        self._seeded = {"database": self._database, "is_complete": False}
        write_json(self._seeded_file, self._seeded)
