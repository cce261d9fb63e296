"""A second node, as small as can be: dictionaries, no event loop, no product code.

It says what any node has to do with what a control plane sends. Whoever disagrees with it is wrong, or it is.
"""

import hashlib
import struct
from collections import Counter
from dataclasses import dataclass, field

from google.protobuf.message import DecodeError
from tollkeeper.common.v1 import position_pb2
from tollkeeper.config.v1 import config_service_pb2 as pb
from tollkeeper.config.v1 import resources_pb2 as res

Key = tuple[int, str]
Place = tuple[str, int, bytes]
MAX_CHUNK_BYTES = 1024 * 1024
SUBJECTS = {
    res.RESOURCE_KIND_API_KEY: "key",
    res.RESOURCE_KIND_DEVICE: "device",
    res.RESOURCE_KIND_USER: "user",
    res.RESOURCE_KIND_ORGANIZATION: "organization",
}


class RefusedError(Exception):
    """The transfer is refused for a reason."""

    def __init__(self, reason: pb.NackReason.ValueType) -> None:
        super().__init__(pb.NackReason.Name(reason))
        self.reason = reason


def place_of(message: position_pb2.Position) -> Place:
    """Return a position as a tuple."""
    return message.config_epoch, message.revision, message.digest


def digest_of(resources: dict[Key, res.Resource]) -> bytes:
    """Return the digest of resources, from its definition in the contract."""
    total = 0
    for (kind, resource_id), each in resources.items():
        name = resource_id.encode()
        hashed = hashlib.sha256(
            struct.pack(">II", kind, len(name))
            + name
            + struct.pack(">Q", each.revision)
            + each.payload
        )
        total += int.from_bytes(hashed.digest(), "big")
    return (total % 2**256).to_bytes(32, "big")


@dataclass
class ReferenceNode:
    """What a node holds, and what it answers."""

    place: Place = ("", 0, bytes(32))
    resources: dict[Key, res.Resource] = field(default_factory=dict)
    marks: dict[tuple[str, str], tuple[str, int]] = field(default_factory=dict)
    _begin: pb.TransferBegin | None = None
    _chunks: list[pb.TransferChunk] = field(default_factory=list)

    def take(self, message: pb.StreamConfigResponse) -> pb.StreamConfigRequest | None:
        """Take a message; return the answer, if it has one."""
        match message.WhichOneof("message"):
            case "transfer_begin":
                self._begin, self._chunks = message.transfer_begin, []
            case "transfer_chunk":
                if self._begin and message.transfer_chunk.transfer_id == self._begin.transfer_id:
                    self._chunks.append(message.transfer_chunk)
            case "transfer_end":
                return self._end(message.transfer_end)
            case "revocation":
                return self._revoke(message.revocation)
        return None

    @property
    def revoked(self) -> set[tuple[str, str]]:
        """Return whom revocations refuse, whatever the configuration says."""
        return {
            subject for subject, mark in self.marks.items() if self._overrules(subject[0], mark)
        }

    def _overrules(self, kind: str, mark: tuple[str, int]) -> bool:
        epoch, revision = mark
        if epoch == self.place[0]:
            return revision > self.place[1]
        return kind in ("key", "device") or epoch > self.place[0]

    def _revoke(self, revocation: pb.Revocation) -> pb.StreamConfigRequest | None:
        kind = SUBJECTS.get(revocation.subject.kind)
        if kind is None:
            return None
        subject = kind, revocation.subject.id
        mark = revocation.config_epoch, revocation.revision
        known = self.marks.get(subject)
        if known is None or known[0] != mark[0] or known < mark:
            self.marks[subject] = mark
        return pb.StreamConfigRequest(
            revocation_ack=pb.RevocationAck(revocation_id=revocation.revocation_id)
        )

    def _end(self, end: pb.TransferEnd) -> pb.StreamConfigRequest | None:
        begin = self._begin
        if begin is None or begin.transfer_id != end.transfer_id:
            # What was never begun, or is void, cannot be had: everything is asked for.
            nack = pb.Nack(
                transfer_id=end.transfer_id,
                applied=self._position(),
                reason=pb.NACK_REASON_POSITION,
            )
            return pb.StreamConfigRequest(nack=nack)
        self._begin = None
        try:
            quarantined = self._apply(begin, end)
        except RefusedError as refused:
            nack = pb.Nack(
                transfer_id=begin.transfer_id, applied=self._position(), reason=refused.reason
            )
            return pb.StreamConfigRequest(nack=nack)
        ack = pb.Ack(transfer_id=begin.transfer_id, applied=self._position())
        ack.quarantined.extend(
            pb.Quarantined(resource=res.ResourceRef(kind=kind, id=resource_id))  # type: ignore[arg-type] # a number
            for kind, resource_id in quarantined
        )
        return pb.StreamConfigRequest(ack=ack)

    def _apply(self, begin: pb.TransferBegin, end: pb.TransferEnd) -> list[Key]:
        if end.chunk_count != len(self._chunks):
            raise RefusedError(pb.NACK_REASON_POSITION)
        if any(chunk.ByteSize() > MAX_CHUNK_BYTES for chunk in self._chunks):
            raise RefusedError(pb.NACK_REASON_GUARD)
        epoch, revision, digest = place_of(begin.to)
        if epoch == self.place[0] and revision < self.place[1]:
            raise RefusedError(pb.NACK_REASON_POSITION)
        resources = self._merged(begin)
        if digest_of(resources) != digest:
            raise RefusedError(pb.NACK_REASON_DIGEST)
        if not begin.force:
            self._check_shrinking(resources)
        quarantined = _read(resources)
        self.resources, self.place = resources, (epoch, revision, digest)
        self.marks = {s: m for s, m in self.marks.items() if self._overrules(s[0], m)}
        return quarantined

    def _merged(self, begin: pb.TransferBegin) -> dict[Key, res.Resource]:
        sent: dict[Key, res.Resource] = {
            (each.kind, each.id): each for chunk in self._chunks for each in chunk.resources
        }
        if begin.intent == pb.TRANSFER_INTENT_FULL:
            return sent
        if begin.intent == pb.TRANSFER_INTENT_NONE:
            return dict(self.resources)
        start = place_of(getattr(begin, "from"))
        if start != self.place or start[0] != begin.to.config_epoch:
            raise RefusedError(pb.NACK_REASON_POSITION)
        removed = {(ref.kind, ref.id) for chunk in self._chunks for ref in chunk.removed}
        kept = {key: each for key, each in self.resources.items() if key not in removed}
        return {**kept, **sent}

    def _check_shrinking(self, resources: dict[Key, res.Resource]) -> None:
        before = Counter(kind for kind, _ in self.resources)
        gone = Counter(kind for kind, _ in self.resources.keys() - resources.keys())
        if any(before[kind] > 100 and 2 * count > before[kind] for kind, count in gone.items()):
            raise RefusedError(pb.NACK_REASON_GUARD)

    def _position(self) -> position_pb2.Position:
        epoch, revision, digest = self.place
        return position_pb2.Position(config_epoch=epoch, revision=revision, digest=digest)


def _read(resources: dict[Key, res.Resource]) -> list[Key]:
    """Return the keys that cannot be read; refuse what has a router without its provider."""
    quarantined = []
    for key, each in resources.items():
        if key[0] == res.RESOURCE_KIND_ROUTER:
            router = res.Router.FromString(each.payload)
            for rule in router.rules:
                if (res.RESOURCE_KIND_PROVIDER, rule.provider_id) not in resources:
                    raise RefusedError(pb.NACK_REASON_INVALID)
        if key[0] == res.RESOURCE_KIND_API_KEY:
            try:
                api_key = res.ApiKey.FromString(each.payload)
            except DecodeError:
                quarantined.append(key)
                continue
            has_user = (res.RESOURCE_KIND_USER, api_key.user_id) in resources
            if not has_user or len(api_key.key_sha256) != 32:
                quarantined.append(key)
    return quarantined
