"""What administrators do to a configuration in the state machine, as changes of rows."""

import itertools
from collections.abc import Sequence
from typing import Any, Final

from sqlmodel import col, select
from tollkeeper.common.v1 import devices_pb2, limits_pb2

from controlplane.secrets.sealing import Secret
from controlplane.store import tables
from controlplane.store.transactions import Transaction
from tests.configuration.contents import NOWHERE
from tests.distribution.conftest import NOW, SEALER

BULK: Final = 110
"""Enough for a node to suspect a fault when most of them are gone at once."""
OFF_SCOPE: Final = "org-2"
"""An organization that the scoped node does not serve."""

Row = tables.ConfigurationRow


class Rows:
    """Makes rows with ids that nothing had before, and changes those that are there."""

    def __init__(self) -> None:
        self._numbers = itertools.count(1)

    def basics(self) -> list[Row]:
        """Return two organizations with everything that a call needs."""
        provider = self._made(
            tables.Provider,
            "provider-1",
            name="upstream",
            provider_kind="mock",
            endpoints=[{"dialect": 1, "base_url": "http://127.0.0.1:9/v1"}],
        )
        router = self._made(tables.Router, "router-1", name="default")
        service = self._made(tables.ServiceSettings, "service")
        rows = [service, self._organization("org-1"), self._organization(OFF_SCOPE), provider]
        rows += [self._credential("credential-1"), router, self._rule("rule-1", "router-1")]
        for number in (1, 2):
            rows.append(self._user(f"user-{number}", f"org-{number}"))
            rows += [self._key(f"key-{number}", f"user-{number}")]
            rows += [self._device(f"device-{number}", f"user-{number}")]
        return rows

    async def add(self, tx: Transaction, what: str, index: int) -> None:
        """Add one row of a sort to something that is chosen by `index`."""
        number = next(self._numbers)
        match what:
            case "organization":
                tx.add(self._organization(f"org-n{number}"))
            case "user":
                organization = await _one(tx, tables.Organization, index)
                tx.add(self._user(f"user-n{number}", organization.id))
            case "key":
                tx.add(self._key(f"key-n{number}", (await _one(tx, tables.User, index)).id))
            case "device":
                tx.add(self._device(f"device-n{number}", (await _one(tx, tables.User, index)).id))
            case "price":
                tx.add(self._price(f"price-n{number}", 1_000 + index))
            case "tier":
                name = f"tier-n{number}"
                tx.add(self._made(tables.Tier, name, name=name, user_limits=[_limit(index)]))
            case "limits":
                user = await _one(tx, tables.User, index)
                if await tx.session.get(tables.SubjectLimits, f"user:{user.id}") is None:
                    tx.add(self._limits(user.id, index))
            case "router":
                tx.add(self._made(tables.Router, f"router-n{number}", name=f"router-n{number}"))
            case "rule":
                router = await _one(tx, tables.Router, index)
                tx.add(self._rule(f"rule-n{number}", router.id, index))
                tx.touch(router)
            case "credential":
                tx.add(self._credential(f"credential-n{number}"))
                tx.touch(await _one(tx, tables.Provider, 0))

    async def change(self, tx: Transaction, what: str, index: int) -> None:
        """Change one row of a sort, chosen by `index`."""
        match what:
            case "organization":
                organization = await _one(tx, tables.Organization, index)
                organization.paused = not organization.paused
            case "user":
                user = await _one(tx, tables.User, index)
                user.tier = f"tier-{index}"
            case "suspension":
                user = await _one(tx, tables.User, index)
                user.suspended = not user.suspended
            case "key":
                if keys := await _all(tx, tables.ApiKey):
                    router = await _one(tx, tables.Router, index)
                    pick(keys, index).router_id = router.id
            case "price":
                if prices := await _all(tx, tables.Price):
                    pick(prices, index).output_nanousd_per_million = index
            case "tier":
                if tiers := await _all(tx, tables.Tier):
                    pick(tiers, index).user_limits = [_limit(index + 1)]
            case "limits":
                if limits := await _all(tx, tables.SubjectLimits):
                    pick(limits, index).limits = [_limit(index + 1)]
            case "rule":
                rule = await _one(tx, tables.Rule, index)
                rule.priority += 1
                tx.touch(await tx.session.get_one(tables.Router, rule.router_id))
            case "credential":
                rotated = await _one(tx, tables.Credential, index)
                rotated.version += 1
                secret = Secret(f"sk-{rotated.id}-{rotated.version}".encode())
                rotated.sealed_secret = SEALER.seal(rotated.id, rotated.version, secret)
                rotated.fingerprint = secret.fingerprint
            case "service":
                (await _one(tx, tables.ServiceSettings, 0)).support_url = f"https://{index}.example"

    async def remove(self, tx: Transaction, what: str, index: int) -> None:
        """Delete a row that nobody calls with; of routers and credentials one stays."""
        sorts: dict[str, type[Row]] = {
            "price": tables.Price,
            "tier": tables.Tier,
            "limits": tables.SubjectLimits,
            "rule": tables.Rule,
            "credential": tables.Credential,
        }
        found = await _all(tx, sorts[what])
        if len(found) <= (what in ("rule", "credential")):
            return
        gone = pick(found, index)
        if isinstance(gone, tables.Rule):
            tx.touch(await tx.session.get_one(tables.Router, gone.router_id))
        if isinstance(gone, tables.Credential):
            tx.touch(await tx.session.get_one(tables.Provider, gone.provider_id))
        await tx.delete(gone)

    async def add_many(self, tx: Transaction, index: int) -> None:
        """Add more keys than a node lets go of at once without being told that it must."""
        user = await _one(tx, tables.User, index)
        for _ in range(BULK):
            tx.add(self._key(f"key-n{next(self._numbers)}", user.id))

    async def poison_leaf(self, tx: Transaction, what: str, index: int) -> None:
        """Add a leaf that nodes must set aside."""
        number = next(self._numbers)
        user = await _one(tx, tables.User, index)
        match what:
            case "key":
                tx.add(self._key(f"key-n{number}", user.id, sha256=b"short %d" % number))
            case "device":
                tx.add(self._device(f"device-n{number}", user.id, sha256=b"short %d" % number))
            case _:
                tx.add(self._price(f"price-n{number}", -1))

    async def poison_structure(self, tx: Transaction, index: int) -> None:
        """Write what no node can serve."""
        (await _one(tx, tables.Organization, index)).time_zone = NOWHERE

    async def dangle(self, tx: Transaction, index: int) -> None:
        """Write what must not be published."""
        tx.add(self._limits(f"nobody-{next(self._numbers)}", index))

    async def heal(self, tx: Transaction) -> None:
        """Undo both."""
        for organization in await _all(tx, tables.Organization):
            if organization.time_zone == NOWHERE:
                organization.time_zone = "UTC"
        users = {user.id for user in await _all(tx, tables.User)}
        for limits in await _all(tx, tables.SubjectLimits):
            if limits.subject_id not in users:
                await tx.delete(limits)

    def _made(self, table: type[Any], row_id: str, **columns: object) -> Any:  # Any: of that table
        return table(id=row_id, created_at=NOW, updated_at=NOW, **columns)

    def _organization(self, row_id: str) -> Row:
        return self._made(tables.Organization, row_id, name=row_id, time_zone="UTC")  # type: ignore[no-any-return] # see _made

    def _user(self, row_id: str, organization_id: str) -> Row:
        name = f"{organization_id}/{row_id}"
        return self._made(tables.User, row_id, name=name, organization_id=organization_id)  # type: ignore[no-any-return] # see _made

    def _key(self, row_id: str, user_id: str, sha256: bytes | None = None) -> Row:
        return self._made(  # type: ignore[no-any-return] # see _made
            tables.ApiKey,
            row_id,
            name=f"{user_id}/{row_id}",
            user_id=user_id,
            router_id="router-1",
            sha256=sha256 or row_id.encode().ljust(32, b"."),
            display="tk_live_…",
        )

    def _device(self, row_id: str, user_id: str, sha256: bytes | None = None) -> Row:
        return self._made(  # type: ignore[no-any-return] # see _made
            tables.Device,
            row_id,
            name=row_id,
            token_sha256=sha256 or row_id.encode().ljust(32, b"."),
            status=devices_pb2.DEVICE_STATUS_APPROVED,
            user_id=user_id,
            router_id="router-1",
        )

    def _price(self, row_id: str, rate: int) -> Row:
        return self._made(  # type: ignore[no-any-return] # see _made
            tables.Price,
            row_id,
            provider="upstream",
            model=row_id,
            effective_from=NOW,
            input_nanousd_per_million=rate,
            output_nanousd_per_million=rate,
        )

    def _limits(self, user_id: str, index: int) -> Row:
        return self._made(  # type: ignore[no-any-return] # see _made
            tables.SubjectLimits,
            f"user:{user_id}",
            name=f"user:{user_id}",
            subject_kind=limits_pb2.SUBJECT_KIND_USER,
            subject_id=user_id,
            limits=[_limit(index)],
        )

    def _rule(self, row_id: str, router_id: str, priority: int = 1) -> Row:
        return self._made(  # type: ignore[no-any-return] # see _made
            tables.Rule,
            row_id,
            router_id=router_id,
            priority=priority,
            provider_id="provider-1",
            models=["*"],
        )

    def _credential(self, row_id: str) -> Row:
        secret = Secret(f"sk-{row_id}-1".encode())
        return self._made(  # type: ignore[no-any-return] # see _made
            tables.Credential,
            row_id,
            name=f"upstream/{row_id}",
            provider_id="provider-1",
            version=1,
            sealed_secret=SEALER.seal(row_id, 1, secret),
            fingerprint=secret.fingerprint,
        )


def pick(found: Sequence[Any], index: int) -> Any:  # Any: one of them
    """Return one of what there is."""
    return found[index % len(found)]


async def _all(tx: Transaction, table: type[Any]) -> Sequence[Any]:  # Any: its rows
    return (await tx.session.exec(select(table).order_by(col(table.id)))).all()


async def _one(tx: Transaction, table: type[Any], index: int) -> Any:  # Any: its row
    return pick(await _all(tx, table), index)


def _limit(capacity: int) -> dict[str, int]:
    return {
        "unit": limits_pb2.LIMIT_UNIT_REQUESTS,
        "window": limits_pb2.LIMIT_WINDOW_DAY,
        "capacity": capacity,
    }
