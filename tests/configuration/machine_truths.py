"""What must be true of nodes whatever was done to them: compared with what the database said, and with what they promised."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Final

from tollkeeper.config.v1 import resources_pb2 as res

from controlplane.domain.revocations import Receipt
from tests.configuration.contents import Caller, Content, Subject, held_facts, read_content
from tests.configuration.machine_planes import Clock, Host, Life
from tests.configuration.reference import digest_of

_WEEK: Final = timedelta(days=7)


@dataclass(frozen=True)
class Claim:
    """What a node must refuse since it heard of it, or had a configuration that says so."""

    subject: Subject
    callers: tuple[Caller, ...]
    config_epoch: str
    revision: int
    at_ms: int
    is_kept: bool
    """It outlives the process, and the database."""


@dataclass
class Truths:
    """What is known of the database at `path`, and of what nodes promised."""

    path: Path
    clock: Clock
    failures: list[str]
    revoked: list[Claim] = field(default_factory=list)
    """Every revocation that was committed."""
    claims: dict[str, list[Claim]] = field(default_factory=lambda: defaultdict(list))
    """By the name of the node that must obey."""
    _in_force: dict[Life, Content] = field(default_factory=dict)
    _places: dict[Life, tuple[str, int]] = field(default_factory=dict)
    _known: dict[tuple[str, int], list[Content]] = field(default_factory=lambda: defaultdict(list))

    def expect(self, holds: bool, otherwise: str) -> None:
        """Note a failure, to be raised by `check`: many things are looked at within the product's tasks."""
        if not holds:
            self.failures.append(otherwise)

    def check(self, hosts: Iterable[Host]) -> None:
        """Raise if anything is, or was, not as it must be."""
        for host in hosts:
            if host.life is not None and host.life in self._in_force:
                self._check_callers(host, host.life)
        assert not self.failures, "\n".join(self.failures)

    def note_database(self) -> None:
        """Note what the database holds, before any node can have it."""
        self._contents_at("", 0)

    def _contents_at(self, config_epoch: str, revision: int) -> list[Content]:
        """Return what there ever was at a position."""
        if not self._known[config_epoch, revision]:
            found = read_content(self.path)
            self._known[found.config_epoch, found.revision].append(found)
        return self._known[config_epoch, revision]

    def observe(self, host: Host, life: Life) -> None:
        """Compare what came into force just now with what was to come."""
        try:
            self._compare(host, life)
        except Exception as error:  # within a task of the product: it is the test that must fail
            self.failures.append(f"{host.name}: {error!r}")

    def _compare(self, host: Host, life: Life) -> None:
        holdings, latest = life.watch.holdings, life.current.latest
        position = holdings.position
        place = position.config_epoch, position.revision
        name = f"{host.name} at {place}"
        before = self._places.get(life, ("", 0))
        is_on = before[0] != place[0] or before[1] <= place[1]
        self.expect(is_on, f"{name}: it was at {before}")
        self._places[life] = place
        facts = held_facts(holdings)
        secrets = {each: secret.version for each, secret in holdings.secrets.items()}
        found = [each.in_scope(host.scope) for each in self._contents_at(*place)]
        matching = [each for each in found if each.facts == facts and each.secrets == secrets]
        self.expect(bool(matching), f"{name}: it holds {facts}, there was {found}")
        resources = {
            key: res.Resource(
                kind=res.ResourceKind.ValueType(each.kind),
                id=each.resource_id,
                revision=each.revision,
                payload=each.payload,
            )
            for key, each in holdings.resources.items()
        }
        self.expect(digest_of(resources) == position.digest, f"{name}: the digest is wrong")
        self.expect(latest is not None and latest.position == position, f"{name}: it serves else")
        if not matching or latest is None:
            return
        content = self._in_force[life] = matching[0]
        is_sound = content.is_servable and content.is_publishable
        self.expect(is_sound, f"{name}: that should not be in force")
        good = {each.sha256 for each in content.callers.values() if each.kind == "key"}
        good -= {b for k, i in content.bad_leaves if (b := _sha256(content, k, i))}
        self.expect(set(latest.keys_by_sha256) == good, f"{name}: it knows other keys")
        if life.is_following:
            life.must_hear, host.is_journal_lost = False, False
        self._claim_contained(host, content)

    def _claim_contained(self, host: Host, content: Content) -> None:
        claimed = {(each.subject, each.config_epoch) for each in self.claims[host.name]}
        for each in self.revoked:
            is_contained = (
                each.config_epoch == content.config_epoch and each.revision <= content.revision
            )
            if is_contained and (each.subject, each.config_epoch) not in claimed:
                self.claims[host.name].append(each)

    def _check_callers(self, host: Host, life: Life) -> None:
        content = self._in_force[life]
        if life.must_hear:
            self.expect(not life.current.is_serving, f"{host.name} serves and cannot know whom not")
            return
        place = content.config_epoch, content.revision
        known = {each.subject for each in self.revoked}
        for caller in content.callers.values():
            admitted = life.admits(caller)
            who = f"{host.name} at {place}: {caller.kind} {caller.credential_id}"
            self.expect(caller.may_call or not admitted, f"{who} must not be let in")
            is_excused = not known.isdisjoint(caller.subjects)
            self.expect(
                admitted or not caller.may_call or is_excused, f"{who} is refused for nothing"
            )
        for claim in self.claims[host.name]:
            if self._binds(claim, content):
                back = [each.credential_id for each in claim.callers if life.admits(each)]
                self.expect(
                    not back,
                    f"{host.name} at {place}: {claim.subject} of"
                    f" {(claim.config_epoch, claim.revision)} is back by {back}",
                )

    def _binds(self, claim: Claim, content: Content) -> bool:
        """Say whether a revocation must be obeyed by a node that knew of it, with this content in force."""
        if claim.config_epoch == content.config_epoch:
            return True
        is_remembered = (
            claim.is_kept and self.clock.now_ms() - claim.at_ms < _WEEK.total_seconds() * 1000
        )
        is_for_good = claim.subject[0] in ("key", "device")
        return is_remembered and (is_for_good or claim.config_epoch > content.config_epoch)

    def note_revoked(self, subject: Subject, before: Content, revision: int) -> None:
        """Note that the change of `revision` took a subject out of service for good."""
        callers = tuple(each for each in before.callers.values() if subject in each.subjects)
        self.revoked.append(
            Claim(
                *(subject, callers, before.config_epoch, revision, self.clock.now_ms()),
                is_kept=False,
            )
        )

    def hold_to(self, receipt: Receipt, hosts: Sequence[Host]) -> None:
        """Check that whoever is named in the receipt of the last revocation does refuse, now."""
        claim = self.revoked[-1]
        for applied in receipt.applied:
            (host,) = (each for each in hosts if each.name == applied.node)
            life = host.life
            assert life is not None
            self.expect(
                not any(life.admits(each) for each in claim.callers),
                f"{host.name} said that it refuses {claim.subject}, and does not",
            )
            if applied.is_kept:
                self.claims[host.name].append(replace(claim, is_kept=True))

    def forget_kept(self, host: Host) -> None:
        """Note that a disk lost what it said of revocations: what they refused may come back with another database."""
        claims = self.claims[host.name]
        self.claims[host.name] = [replace(each, is_kept=False) for each in claims]


def _sha256(content: Content, kind: int, resource_id: str) -> bytes | None:
    if kind != res.RESOURCE_KIND_API_KEY:
        return None
    return content.callers["key", resource_id].sha256
