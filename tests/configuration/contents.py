"""What a database says a node must have, read past the product: rows by SQL, and what they mean for each credential."""

import json
import sqlite3
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from google.protobuf.message import Message
from tollkeeper.common.v1 import devices_pb2
from tollkeeper.config.v1 import resources_pb2 as res

from dataplane.control.holdings import Holdings

Key = tuple[int, str]
Facts = tuple[object, ...]
Subject = tuple[str, str]
Row = sqlite3.Row
_HASH_BYTES: Final = 32


@dataclass(frozen=True)
class Caller:
    """A credential in one content: how it is presented, whose it is, and whether it may call."""

    kind: str
    credential_id: str
    sha256: bytes
    user_id: str
    organization_id: str
    may_call: bool

    @property
    def subjects(self) -> tuple[Subject, ...]:
        """Return everything whose revocation refuses it."""
        return (
            (self.kind, self.credential_id),
            ("user", self.user_id),
            ("organization", self.organization_id),
        )


@dataclass(frozen=True)
class Content:
    """A configuration: what is said of each resource, its secrets' versions, and what follows for callers."""

    config_epoch: str
    revision: int
    facts: Mapping[Key, Facts]
    owners: Mapping[Key, str]
    secrets: Mapping[str, int]
    callers: Mapping[Subject, Caller]
    bad_leaves: frozenset[Key]
    is_publishable: bool
    """Every reference resolves."""

    @property
    def is_servable(self) -> bool:
        """Say that no structural resource is one that no node can serve."""
        return not any(
            kind == res.RESOURCE_KIND_ORGANIZATION and said[2] == NOWHERE
            for (kind, _), said in self.facts.items()
        )

    def in_scope(self, organization_ids: frozenset[str]) -> "Content":
        """Return what a node of a scope has of it."""
        if not organization_ids:
            return self
        seen = {key for key, owner in self.owners.items() if owner in {"", *organization_ids}}
        names: dict[int, str] = {
            res.RESOURCE_KIND_API_KEY: "key",
            res.RESOURCE_KIND_DEVICE: "device",
        }
        callers = {(names[kind], each) for kind, each in seen if kind in names}
        return Content(
            self.config_epoch,
            self.revision,
            {key: each for key, each in self.facts.items() if key in seen},
            {key: each for key, each in self.owners.items() if key in seen},
            {
                each: version
                for each, version in self.secrets.items()
                if (res.RESOURCE_KIND_CREDENTIAL, each) in seen
            },
            {key: each for key, each in self.callers.items() if key in callers},
            self.bad_leaves & seen,
            self.is_publishable,
        )


def held_facts(holdings: Holdings) -> dict[Key, Facts]:
    """Return what a node's resources say."""
    return {
        key: (each.revision, *_READERS[each.kind](each.payload))
        for key, each in holdings.resources.items()
    }


def read_content(path: Path) -> Content:
    """Return what is in a database that may be in use."""
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
        connection.row_factory = sqlite3.Row
        connection.execute("BEGIN")
        return _Reading(connection).content()


@dataclass
class _Reading:
    connection: sqlite3.Connection
    facts: dict[Key, Facts] = field(default_factory=dict)
    owners: dict[Key, str] = field(default_factory=dict)
    bad: set[Key] = field(default_factory=set)
    callers: dict[Subject, Caller] = field(default_factory=dict)

    def rows(self, table: str, order: str = "id") -> list[Row]:
        return self.connection.execute(f"SELECT * FROM {table} ORDER BY {order}").fetchall()  # noqa: S608

    def content(self) -> Content:
        (counter,) = self.rows("revision_counter")
        services = self.rows("service_settings")
        for row in services:
            self.put(1, row, "", row["max_replicas"], row["support_url"], bool(row["paused"]))
        is_paused = any(row["paused"] for row in services)
        organizations = {row["id"]: row for row in self.rows("organizations")}
        for row in organizations.values():
            self.put(2, row, row["id"], row["name"], row["time_zone"], bool(row["paused"]))
        users = {row["id"]: row for row in self.rows("users")}
        for row in users.values():
            owner = row["organization_id"]
            self.put(3, row, owner, row["name"], owner, row["tier"], bool(row["suspended"]))
        self.shared()
        self.credentials_of_callers(users, organizations, is_paused)
        is_publishable = self.limits(users)
        return Content(
            counter["config_epoch"],
            counter["revision"],
            self.facts,
            self.owners,
            {row["id"]: row["version"] for row in self.rows("credentials")},
            self.callers,
            frozenset(self.bad),
            is_publishable,
        )

    def put(self, kind: int, row: Row, owner: str, *said: object) -> None:
        self.facts[kind, row["id"]] = (row["revision"], *said)
        self.owners[kind, row["id"]] = owner

    def shared(self) -> None:
        credentials, rules = self.rows("credentials", "created_at, id"), self.rows("rules")
        for row in self.rows("providers"):
            ids = tuple(each["id"] for each in credentials if each["provider_id"] == row["id"])
            self.put(5, row, "", row["name"], row["provider_kind"], ids)
        for row in credentials:
            said = row["name"], row["provider_id"], row["version"], row["fingerprint"]
            self.put(6, row, "", *said)
        for row in self.rows("routers"):
            mine = [each for each in rules if each["router_id"] == row["id"]]
            mine.sort(key=lambda each: (each["priority"], each["id"]))
            self.put(
                7,
                row,
                "",
                row["name"],
                tuple((each["id"], each["priority"], each["provider_id"]) for each in mine),
            )
        for row in self.rows("prices"):
            rates = row["input_nanousd_per_million"], row["output_nanousd_per_million"]
            self.put(9, row, "", row["provider"], row["model"], *rates)
            if min(rates) < 0:
                self.bad.add((9, row["id"]))
        for row in self.rows("tiers"):
            capacities = tuple(each["capacity"] for each in json.loads(row["user_limits"]))
            self.put(11, row, "", row["name"], capacities)

    def credentials_of_callers(
        self, users: Mapping[str, Row], organizations: Mapping[str, Row], is_paused: bool
    ) -> None:
        for row in self.rows("api_keys"):
            user = users[row["user_id"]]
            said = row["name"], row["user_id"], row["router_id"], row["sha256"]
            self.put(4, row, user["organization_id"], *said, bool(row["revoked"]))
            self.caller("key", 4, row, row["sha256"], user, organizations, is_paused)
        for row in self.rows("devices"):
            user = users[row["user_id"]]
            said = row["name"], row["token_sha256"], row["status"], row["user_id"]
            self.put(10, row, user["organization_id"], *said)
            self.caller("device", 10, row, row["token_sha256"], user, organizations, is_paused)

    def caller(
        self,
        kind: str,
        number: int,
        row: Row,
        sha256: bytes,
        user: Row,
        organizations: Mapping[str, Row],
        is_paused: bool,
    ) -> None:
        is_bad = len(sha256) != _HASH_BYTES
        if is_bad:
            self.bad.add((number, row["id"]))
        is_in_service = (
            row["status"] == devices_pb2.DEVICE_STATUS_APPROVED
            if kind == "device"
            else not row["revoked"]
        )
        organization = organizations[user["organization_id"]]
        is_stopped = user["suspended"] or organization["paused"] or is_paused
        self.callers[kind, row["id"]] = Caller(
            *(kind, row["id"], sha256, user["id"], organization["id"]),
            may_call=is_in_service and not is_bad and not is_stopped,
        )

    def limits(self, users: Mapping[str, Row]) -> bool:
        """Add the limits, and say whether all of them are of something that exists."""
        is_publishable = True
        for row in self.rows("subject_limits"):
            user = users.get(row["subject_id"])
            is_publishable &= user is not None
            capacities = tuple(each["capacity"] for each in json.loads(row["limits"]))
            owner = user["organization_id"] if user else "?"
            self.put(8, row, owner, row["subject_kind"], row["subject_id"], capacities)
        return is_publishable


NOWHERE: Final = "Nowhere/Land"
"""A time zone that no node knows."""


def _reader(
    message_class: type[Message],
    facts: Callable[[Any], Iterable[object]],  # Any: the class of the message
) -> Callable[[bytes], Iterable[object]]:
    def read(payload: bytes) -> Iterable[object]:
        message = message_class()
        message.ParseFromString(payload)
        return facts(message)

    return read


_READERS: Final[dict[int, Callable[[bytes], Iterable[object]]]] = {
    1: _reader(res.Service, lambda m: (m.max_replicas, m.support_url, m.paused)),
    2: _reader(res.Organization, lambda m: (m.name, m.time_zone, m.paused)),
    3: _reader(res.User, lambda m: (m.name, m.organization_id, m.tier, m.suspended)),
    4: _reader(
        res.ApiKey,
        lambda m: (m.name, m.user_id, m.router_id, m.key_sha256, m.revoked),
    ),
    5: _reader(res.Provider, lambda m: (m.name, m.kind, tuple(m.credential_ids))),
    6: _reader(res.Credential, lambda m: (m.name, m.provider_id, m.version, m.fingerprint)),
    7: _reader(
        res.Router,
        lambda m: (m.name, tuple((r.id, r.priority, r.provider_id) for r in m.rules)),
    ),
    8: _reader(
        res.SubjectLimits,
        lambda m: (m.subject_kind, m.subject_id, tuple(each.capacity for each in m.limits)),
    ),
    9: _reader(
        res.Price,
        lambda m: (
            *(m.provider, m.model, m.rates.input_nanousd_per_million),
            m.rates.output_nanousd_per_million,
        ),
    ),
    10: _reader(res.Device, lambda m: (m.name, m.token_sha256, m.status, m.user_id)),
    11: _reader(res.Tier, lambda m: (m.name, tuple(each.capacity for each in m.user_limits))),
}
