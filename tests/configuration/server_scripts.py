"""What control planes say to nodes, rightly and wrongly: a corpus that every node has to get through alike."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from google.protobuf.message import Message
from tollkeeper.common.v1 import position_pb2
from tollkeeper.config.v1 import config_service_pb2 as pb
from tollkeeper.config.v1 import resources_pb2 as res

from tests.configuration.reference import Key, digest_of

FIRST_EPOCH = "t000000000001-000000000001"
LATER_EPOCH = "t000000000002-000000000002"
Script = list[pb.StreamConfigResponse]


def resource(kind: res.ResourceKind.ValueType, resource_id: str, message: Message) -> res.Resource:
    """Return a message as it travels; its revision is set when it is put."""
    return res.Resource(kind=kind, id=resource_id, payload=message.SerializeToString())


def api_key(number: int, user_id: str = "user-1") -> res.Resource:
    """Return an API key."""
    message = res.ApiKey(
        name=f"acme/alice/{number}",
        user_id=user_id,
        key_sha256=number.to_bytes(32, "big"),
        router_id="router-1",
    )
    return resource(res.RESOURCE_KIND_API_KEY, f"key-{number}", message)


def router(provider_id: str = "provider-1", name: str = "main") -> res.Resource:
    """Return the router, with one rule."""
    rule = res.Rule(id="rule-1", priority=1, provider_id=provider_id, models=["*"])
    return resource(res.RESOURCE_KIND_ROUTER, "router-1", res.Router(name=name, rules=[rule]))


def basics() -> list[res.Resource]:
    """Return what keys need."""
    endpoint = res.Endpoint(dialect=res.DIALECT_OPENAI, base_url="https://api.example.com/v1")
    provider = res.Provider(name="upstream", kind="openai", endpoints=[endpoint])
    return [
        resource(res.RESOURCE_KIND_SERVICE, "service", res.Service(max_replicas=1)),
        resource(res.RESOURCE_KIND_ORGANIZATION, "org-1", res.Organization(name="acme")),
        resource(
            res.RESOURCE_KIND_USER, "user-1", res.User(name="acme/alice", organization_id="org-1")
        ),
        resource(res.RESOURCE_KIND_PROVIDER, "provider-1", provider),
        router(),
    ]


def ref(kind: res.ResourceKind.ValueType, resource_id: str) -> Key:
    """Name a resource."""
    return kind, resource_id


def key_ref(number: int) -> Key:
    """Name a key."""
    return ref(res.RESOURCE_KIND_API_KEY, f"key-{number}")


@dataclass
class Database:
    """A configuration that changes, and the transfers that tell of it."""

    epoch: str = FIRST_EPOCH
    revision: int = 0
    resources: dict[Key, res.Resource] = field(default_factory=dict)
    transfers: Iterator[int] = field(default_factory=lambda: iter(range(1, 10**6)))

    def put(self, *given: res.Resource, remove: Iterable[Key] = ()) -> None:
        """Make one change."""
        self.revision += 1
        for key in remove:
            del self.resources[key]
        for each in given:
            each.revision = self.revision
            self.resources[each.kind, each.id] = each

    @property
    def position(self) -> position_pb2.Position:
        """Where it stands."""
        return position_pb2.Position(
            config_epoch=self.epoch, revision=self.revision, digest=digest_of(self.resources)
        )

    def full(self, *, force: bool = False, chunk: int = 3) -> Script:
        """Tell everything."""
        begin = pb.TransferBegin(
            transfer_id=next(self.transfers),
            intent=pb.TRANSFER_INTENT_FULL,
            reason=pb.TRANSFER_REASON_FIRST,
            to=self.position,
            force=force,
        )
        return self._transfer(begin, list(self.resources.values()), [], chunk)

    def delta(
        self, start: position_pb2.Position, removed: Iterable[Key] = (), *, force: bool = False
    ) -> Script:
        """Tell what changed since a position; what was removed has to be said."""
        begin = pb.TransferBegin(
            transfer_id=next(self.transfers),
            intent=pb.TRANSFER_INTENT_DELTA,
            reason=pb.TRANSFER_REASON_CHANGED,
            to=self.position,
            force=force,
        )
        getattr(begin, "from").CopyFrom(start)
        changed = [each for each in self.resources.values() if each.revision > start.revision]
        return self._transfer(begin, changed, list(removed), 3)

    def none(self) -> Script:
        """Tell that only the position moved."""
        begin = pb.TransferBegin(
            transfer_id=next(self.transfers),
            intent=pb.TRANSFER_INTENT_NONE,
            reason=pb.TRANSFER_REASON_CURRENT,
            to=self.position,
        )
        return self._transfer(begin, [], [], 1)

    @staticmethod
    def _transfer(
        begin: pb.TransferBegin, put: list[res.Resource], removed: list[Key], size: int
    ) -> Script:
        chunks = [
            pb.TransferChunk(transfer_id=begin.transfer_id, resources=put[start : start + size])
            for start in range(0, len(put), size)
        ]
        if removed:
            refs = [res.ResourceRef(kind=kind, id=resource_id) for kind, resource_id in removed]  # type: ignore[arg-type] # numbers
            chunks.append(pb.TransferChunk(transfer_id=begin.transfer_id, removed=refs))
        end = pb.TransferEnd(transfer_id=begin.transfer_id, chunk_count=len(chunks))
        return [
            pb.StreamConfigResponse(transfer_begin=begin),
            *(pb.StreamConfigResponse(transfer_chunk=chunk) for chunk in chunks),
            pb.StreamConfigResponse(transfer_end=end),
        ]

    def revoke(self, subject: Key, *, ahead: int = 1) -> pb.StreamConfigResponse:
        """Revoke a subject, by default ahead of the transfer that will contain it."""
        kind, subject_id = subject
        revision = self.revision + ahead
        return pb.StreamConfigResponse(
            revocation=pb.Revocation(
                revocation_id=f"{kind}:{subject_id}:{revision}",
                revision=revision,
                config_epoch=self.epoch,
                subject=res.ResourceRef(kind=kind, id=subject_id),  # type: ignore[arg-type] # a number
                organization_id="org-1",
            )
        )


SCRIPTS: dict[str, Callable[[], Script]] = {}


def script(make: Callable[[], Script]) -> Callable[[], Script]:
    """Add a script to the corpus."""
    SCRIPTS[make.__name__] = make
    return make


def begun(keys: int = 3) -> tuple[Database, Script]:
    """Return a database with some keys, and its first transfer."""
    database = Database()
    database.put(*basics(), *(api_key(number) for number in range(keys)))
    return database, database.full()


@script
def everything_then_nothing() -> Script:
    database, said = begun()
    database.revision += 1
    return said + database.none()


@script
def a_chain_of_changes() -> Script:
    database, said = begun()
    for number in range(10, 20):
        start = database.position
        gone = [key_ref(number - 1)] if number > 10 else []
        database.put(api_key(number), remove=gone)
        said += database.delta(start, gone)
    return said


@script
def everything_twice() -> Script:
    database, said = begun()
    return said + database.full()


@script
def a_change_from_elsewhere() -> Script:
    database, said = begun()
    database.put(api_key(10))
    start = database.position
    database.put(api_key(11))
    return said + database.delta(start)


@script
def a_change_with_another_digest() -> Script:
    database, said = begun()
    start = database.position
    database.put(api_key(10))
    delta = database.delta(start)
    delta[0].transfer_begin.to.digest = bytes(32)
    return said + delta


@script
def everything_with_another_digest() -> Script:
    _, said = begun()
    said[0].transfer_begin.to.digest = b"x" * 32
    return said


@script
def nothing_with_another_digest() -> Script:
    database, said = begun()
    none = database.none()
    none[0].transfer_begin.to.digest = b"x" * 32
    return said + none


@script
def a_change_that_removes_what_is_not_there() -> Script:
    database, said = begun()
    start = database.position
    database.put(api_key(10))
    return said + database.delta(start, [key_ref(99)])


@script
def a_missing_chunk() -> Script:
    database, said = begun()
    database.put(api_key(10))
    full = database.full()
    del full[1]
    return said + full


@script
def a_chunk_too_many() -> Script:
    database, said = begun()
    full = database.full()
    full.insert(1, full[1])
    del full[-1]
    end = pb.TransferEnd(transfer_id=full[0].transfer_begin.transfer_id, chunk_count=3)
    return [*said, *full, pb.StreamConfigResponse(transfer_end=end)]


@script
def a_transfer_that_another_one_ends() -> Script:
    database, said = begun()
    database.put(api_key(10))
    return said + database.full()[:2] + database.full()


@script
def an_end_without_a_beginning() -> Script:
    database, said = begun()
    return [database.full()[-1], *said, database.full()[-1]]


@script
def chunks_of_another_transfer() -> Script:
    database, said = begun()
    other = database.full()
    return [*said[:1], other[1], *said[1:]]


@script
def an_older_revision() -> Script:
    database, said = begun()
    older = Database(resources=dict(database.resources))
    older.transfers = database.transfers
    database.revision = 7
    return database.full() + older.full() if said else []


@script
def another_epoch() -> Script:
    database, said = begun()
    database.epoch, database.revision = LATER_EPOCH, 1
    return said + database.full()


@script
def a_change_across_epochs() -> Script:
    database, said = begun()
    start = database.position
    database.epoch = LATER_EPOCH
    database.put(api_key(10))
    return said + database.delta(start)


@script
def a_router_without_its_provider() -> Script:
    database, said = begun()
    start = database.position
    database.put(router(provider_id="provider-2"))
    said += database.delta(start)
    database.put(router())
    return said + database.full()


@script
def a_provider_that_goes_while_its_router_stays() -> Script:
    database, said = begun()
    start, gone = database.position, [ref(res.RESOURCE_KIND_PROVIDER, "provider-1")]
    database.put(remove=gone)
    return said + database.delta(start, gone)


@script
def a_key_that_cannot_be_read() -> Script:
    database, said = begun()
    start = database.position
    bad = res.Resource(kind=res.RESOURCE_KIND_API_KEY, id="key-9", payload=b"\xff\xff")
    database.put(bad)
    said += database.delta(start)
    start = database.position
    database.put(api_key(9))
    return said + database.delta(start)


@script
def a_key_without_its_user() -> Script:
    database, said = begun()
    start = database.position
    database.put(api_key(9, user_id="user-2"))
    return said + database.delta(start)


@script
def a_user_that_goes_while_its_keys_stay() -> Script:
    database, said = begun()
    start, gone = database.position, [ref(res.RESOURCE_KIND_USER, "user-1")]
    database.put(remove=gone)
    said += database.delta(start, gone)
    start = database.position
    database.put(basics()[2])
    return said + database.delta(start)


@script
def too_much_that_goes_at_once() -> Script:
    database, said = begun(keys=120)
    start, gone = database.position, [key_ref(number) for number in range(70)]
    database.put(remove=gone)
    return said + database.delta(start, gone) + database.full()


@script
def too_much_that_goes_because_somebody_says_so() -> Script:
    database, said = begun(keys=120)
    start, gone = database.position, [key_ref(number) for number in range(70)]
    database.put(remove=gone)
    return said + database.delta(start, gone, force=True)


@script
def half_of_a_kind_that_goes() -> Script:
    database, said = begun(keys=120)
    start, gone = database.position, [key_ref(number) for number in range(60)]
    database.put(remove=gone)
    return said + database.delta(start, gone)


@script
def a_chunk_that_is_too_large() -> Script:
    database, said = begun()
    database.put(resource(res.RESOURCE_KIND_USER, "user-9", res.User(name="x" * 1_100_000)))
    return said + database.full(chunk=1)


@script
def a_revocation_ahead_of_its_transfer() -> Script:
    database, said = begun()
    said.append(database.revoke(key_ref(1)))
    start = database.position
    database.put(api_key(2))
    return said + database.delta(start)


@script
def a_revocation_before_anything_else() -> Script:
    database, said = begun()
    return [database.revoke(key_ref(1), ahead=0), database.revoke(key_ref(2)), *said]


@script
def a_revocation_inside_of_a_transfer() -> Script:
    database, said = begun()
    said.insert(2, database.revoke(key_ref(1)))
    return said


@script
def a_revocation_that_is_older_than_what_is_held() -> Script:
    database, said = begun()
    return [*said, database.revoke(key_ref(1), ahead=0)]


@script
def revocations_in_the_wrong_order() -> Script:
    database, said = begun()
    later, earlier = database.revoke(key_ref(1), ahead=5), database.revoke(key_ref(1), ahead=2)
    database.revision += 3
    return [*said, later, earlier, *database.none()]


@script
def revocations_across_a_restored_database() -> Script:
    database, said = begun()
    said += [
        database.revoke(key_ref(1)),
        database.revoke(ref(res.RESOURCE_KIND_USER, "user-1")),
        database.revoke(ref(res.RESOURCE_KIND_ORGANIZATION, "org-1")),
    ]
    database.epoch, database.revision = LATER_EPOCH, 40
    return said + database.full()


@script
def a_revocation_of_a_later_epoch() -> Script:
    _, said = begun()
    other = Database(epoch=LATER_EPOCH)
    return [*said, other.revoke(ref(res.RESOURCE_KIND_USER, "user-1"))]


@script
def a_revocation_of_something_unknown() -> Script:
    database, said = begun()
    return [*said, database.revoke(ref(res.RESOURCE_KIND_TIER, "free"))]


@script
def a_revocation_while_transfers_are_refused() -> Script:
    database, said = begun()
    start = database.position
    database.put(router(provider_id="provider-2"))
    return said + database.delta(start) + [database.revoke(key_ref(1))] + database.full()


@script
def an_empty_configuration() -> Script:
    database = Database(revision=3)
    return database.full()


@script
def messages_that_nobody_knows() -> Script:
    _, said = begun()
    unknown = pb.StreamConfigResponse.FromString(b"\xa2\x06\x03abc")
    return [unknown, *said[:2], unknown, *said[2:], unknown]
