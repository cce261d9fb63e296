"""Both planes under a test that may do anything to them: to the database, to processes, disks and the network."""

import shutil
import sqlite3
from collections.abc import Awaitable, Callable, Iterable
from contextlib import closing
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

from sqlmodel import select
from tollkeeper.common.v1.devices_pb2 import DEVICE_STATUS_REVOKED
from tollkeeper.config.v1 import resources_pb2 as res

from controlplane.rpc.revocations import REVOCABLE, keep_revocation
from controlplane.store import tables
from controlplane.store.compaction import compact
from controlplane.store.transactions import Transaction
from dataplane.control.hello import Node
from tests.configuration.contents import Caller, Content, read_content
from tests.configuration.machine_planes import (
    EVERYBODY,
    REVOCATIONS,
    Clock,
    Host,
    OnlyWhole,
    Service,
)
from tests.configuration.machine_rows import Rows, pick
from tests.configuration.machine_truths import Truths
from tests.configuration.proxy import Proxy

RECEIPT_WAIT_MS: Final = 300
_KINDS: Final[dict[str, type[Any]]] = {  # Any: its columns
    "key": tables.ApiKey,
    "device": tables.Device,
    "user": tables.User,
    "organization": tables.Organization,
}


@dataclass
class World:
    """A control plane, three nodes, the network between them, and what is known of all of it."""

    folder: Path
    template: Path
    faults: list[str]
    """What goes wrong in the product's tasks, or is seen to be wrong there."""
    clock: Clock = field(default_factory=Clock)
    rows: Rows = field(default_factory=Rows)
    hosts: list[Host] = field(default_factory=list)
    backups: list[Path] = field(default_factory=list)

    # ── Beginning and end ────────────────────────────────────────────────────────────────────

    async def open(self) -> None:
        """Start everything, with a small configuration."""
        scopes = {"delta": EVERYBODY, "whole": EVERYBODY, "scoped": frozenset({"org-1"})}
        self.service = Service(self.folder / "controlplane", self.clock, scopes)
        self.truths = Truths(self.service.path, self.clock, self.faults)
        self.service.folder.mkdir()
        shutil.copyfile(self.template, self.service.path)
        await self.start_service()
        await self.write(self._basics)
        for name, scope in scopes.items():
            proxy = Proxy()
            await proxy.start()
            made = OnlyWhole if name == "whole" else Node
            host = Host(
                name,
                self.folder,
                lambda name=name, made=made: made(name, "0.1.0", name),  # type: ignore[misc] # its defaults
                scope,
                proxy,
                self.clock,
                self.truths.observe,
            )
            self.hosts.append(host)
            self._connect(host)
            await host.start()

    async def close(self) -> None:
        """End everything."""
        for host in self.hosts:
            if host.life is not None:
                await host.stop()
            await host.proxy.stop()
        await self.service.stop()

    async def _basics(self, tx: Transaction) -> None:
        for row in self.rows.basics():
            tx.add(row)
            await tx.session.flush()

    def host(self, index: int, *, is_alive: bool | None = None) -> Host | None:
        """Return a node's machine, if there is one that is as asked for."""
        found = [each for each in self.hosts if is_alive in (None, each.life is not None)]
        chosen: Host | None = pick(found, index) if found else None
        return chosen

    # ── Administrators ───────────────────────────────────────────────────────────────────────

    async def write(self, change: Callable[[Transaction], Awaitable[None]]) -> int | None:
        """Make a change, and note what the database holds then, before any node can have it."""
        if self.service.running is None:
            return None
        async with self.service.running.store.transaction("test", "Write") as tx:
            await change(tx)
            tx.after_commit(self._note_database)
        return tx.committed_revision

    async def _note_database(self) -> None:
        self.truths.note_database()

    async def revoke(self, kind: str, index: int) -> None:
        """Take something out of service for good, and hold the receipt against what its nodes do."""
        plane, content = self.service.running, read_content(self.service.path)
        subjects = sorted(self._revocable(kind, content))
        if plane is None or not subjects:
            return
        subject_id = pick(subjects, index)
        organizations: list[str] = []

        async def change(tx: Transaction) -> None:
            row = await tx.session.get_one(_KINDS[kind], subject_id)
            organizations.append(await keep_revocation(tx, row))
            if isinstance(row, tables.ApiKey):
                row.revoked = True
            elif isinstance(row, tables.Device):
                row.status = DEVICE_STATUS_REVOKED
            else:
                await self._delete(tx, row)

        revision = await self.write(change)
        assert revision is not None
        self.truths.note_revoked((kind, subject_id), content, revision)
        receipt = await plane.fleet.revoke(
            REVOCABLE[_KINDS[kind].KIND],
            subject_id,
            revision,
            organization_id=organizations[0],
            terminate_streams=False,
            wait_ms=RECEIPT_WAIT_MS,
        )
        self.truths.hold_to(receipt, self.hosts)

    async def delete_many(self, index: int) -> None:
        """Delete most of the keys of the user who has most, as an administrator who means it."""
        plane, content = self.service.running, read_content(self.service.path)
        keys = sorted(each.credential_id for each in content.callers.values() if each.kind == "key")
        if plane is None or len(keys) < 2:
            return
        start = index % (len(keys) // 4 + 1)
        gone = keys[start : start + len(keys) * 2 // 3]

        async def change(tx: Transaction) -> None:
            for key_id in gone:
                row = await tx.session.get_one(tables.ApiKey, key_id)
                await keep_revocation(tx, row)
                await tx.delete(row)

        revision = await self.write(change)
        assert revision is not None
        for key_id in gone:
            self.truths.note_revoked(("key", key_id), content, revision)

    @staticmethod
    def _revocable(kind: str, content: Content) -> Iterable[str]:
        """Return whom to revoke: of owners, those whose end leaves somebody."""
        kinds = {"user": res.RESOURCE_KIND_USER, "organization": res.RESOURCE_KIND_ORGANIZATION}
        if kind not in kinds:
            return [
                each.credential_id
                for each in content.callers.values()
                if each.kind == kind and _is_in_service(each, content)
            ]
        found = [each for number, each in content.facts if number == kinds[kind]]
        # The first of each stay, so that there always is one to add to.
        return [each for each in found if each not in ("user-1", "org-1")]

    async def _delete(self, tx: Transaction, owner: tables.ConfigurationRow) -> None:
        """Delete a user or an organization with all that it owns."""
        users = list(
            await tx.session.exec(
                select(tables.User).where(tables.User.organization_id == owner.id)
            )
        )
        if isinstance(owner, tables.User):
            users = [owner]
        for user in users:
            for table in (tables.ApiKey, tables.Device):
                owned = await tx.session.exec(select(table).where(table.user_id == user.id))
                for row in owned:
                    await tx.delete(row)
            limits = await tx.session.get(tables.SubjectLimits, f"user:{user.id}")
            if limits is not None:
                await tx.delete(limits)
            await tx.session.flush()
            await tx.delete(user)
        await tx.session.flush()
        if isinstance(owner, tables.Organization):
            await tx.delete(owner)

    # ── Control plane, nodes, network ────────────────────────────────────────────────────────

    async def end_service(self, *, is_kill: bool) -> None:
        """End the control plane, with or without a word."""
        if self.service.running is None:
            return
        if is_kill:
            for host in self.hosts:
                host.proxy.point_at(None)
                host.proxy.cut()
        await self.service.stop()

    async def start_service(self) -> None:
        """Start a control plane on the database, another one than before."""
        if self.service.running is None:
            await self.service.start()
            # An epoch may have begun: nodes are not there yet.
            self.truths.note_database()
            for host in self.hosts:
                self._connect(host)

    def _connect(self, host: Host) -> None:
        running = self.service.running
        host.proxy.point_at(None if running is None else running.address)

    def reconnect(self, host: Host) -> None:
        """Let a node reach the control plane."""
        host.proxy.flow()
        self._connect(host)

    def damage(self, host: Host, index: int, at: int, *, is_cut: bool) -> None:
        """Change a byte of a file of a node that does not run, or cut the file off there."""
        files = host.files()
        if host.life is not None or not files:
            return
        path = pick(files, index)
        data = bytearray(path.read_bytes())
        if not data:
            return
        if path.name == REVOCATIONS:
            if is_cut:
                # What no seal can show is an end after a whole frame: before the first there is none.
                at %= 90
            host.is_journal_lost = True
            self.truths.forget_kept(host)
        at %= len(data)
        if is_cut:
            del data[at:]
        else:
            data[at] ^= 1 << at % 8
        path.write_bytes(data)

    def back_up(self) -> None:
        """Make a copy of the database as it is."""
        target = self.folder / f"backup-{len(self.backups)}.sqlite"
        with (
            closing(sqlite3.connect(self.service.path)) as source,
            closing(sqlite3.connect(target)) as copy,
        ):
            source.backup(copy)
        self.backups.append(target)

    async def restore(self, index: int) -> None:
        """Put a copy back in the place of the database, while the control plane is down."""
        if not self.backups:
            return
        was_running = self.service.running is not None
        await self.end_service(is_kill=True)
        for path in self.service.folder.glob("controlplane.sqlite*"):
            path.unlink()
        shutil.copyfile(pick(self.backups, index), self.service.path)
        if was_running:
            await self.start_service()

    async def forget(self) -> None:
        """Let eight days pass, and have forgotten what may be."""
        self.clock.ahead += timedelta(days=8)
        if self.service.running is not None:
            await compact(self.service.running.store)


def _is_in_service(caller: Caller, content: Content) -> bool:
    kind = {"key": res.RESOURCE_KIND_API_KEY, "device": res.RESOURCE_KIND_DEVICE}[caller.kind]
    said = content.facts[kind, caller.credential_id]
    return said[-1] is False if caller.kind == "key" else said[3] != DEVICE_STATUS_REVOKED
