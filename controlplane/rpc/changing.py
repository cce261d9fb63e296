"""What every changing method does around its own few lines: transaction, audit, repetition, dry run, waiting."""

import hashlib
import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime
from functools import wraps
from typing import Any, Final, TypeVar

from google.protobuf.message import Message

from controlplane.domain.names import RandomBelow
from controlplane.rpc.actors import current_actor
from controlplane.rpc.propagation import (
    PROPAGATION,
    propagation_to_proto,
    wait_ms_of,
    without_waiting,
)
from controlplane.rpc.redaction import audited, without_secrets
from controlplane.rpc.revocations import Revoker
from controlplane.secrets.sealing import Sealer
from controlplane.store.database import Store
from controlplane.store.idempotency import Idempotency
from controlplane.store.transactions import Transaction


@dataclass(frozen=True, slots=True)
class Backend:
    """Everything that the admin servicers work with."""

    store: Store
    sealer: Sealer
    revoker: Revoker
    clock: Callable[[], datetime]
    random_below: RandomBelow = secrets.randbelow
    random_bytes: Callable[[int], bytes] = secrets.token_bytes


class AdminServicer:
    """A servicer of an admin service."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    @property
    def backend(self) -> Backend:
        """What this servicer works with."""
        return self._backend


ServicerT = TypeVar("ServicerT", bound=AdminServicer)
RequestT = TypeVar("RequestT", bound=Message)
AnswerT = TypeVar("AnswerT", bound=Message)

Body = Callable[[ServicerT, Transaction, RequestT], Awaitable[Callable[[], AnswerT]]]
Method = Callable[[ServicerT, RequestT, Any], Awaitable[AnswerT]]  # Any: the context is not used


def changing(
    answer_type: type[AnswerT],
) -> Callable[[Body[ServicerT, RequestT, AnswerT]], Method[ServicerT, RequestT, AnswerT]]:
    """Make an RPC out of a method that changes the configuration within a transaction.

    The method returns a function that makes the answer; it is called when rows carry their new revision. A repeated
    `request_id` gets the first answer, without secrets; `validate_only` makes every check and keeps nothing. Who asks to
    wait for the data planes is answered after that, a repetition with figures of its own; cancelling the call meanwhile
    undoes nothing.
    """

    def decorate(
        body: Body[ServicerT, RequestT, AnswerT],
    ) -> Method[ServicerT, RequestT, AnswerT]:
        @wraps(body)
        async def method(servicer: ServicerT, request: RequestT, _context: Any) -> AnswerT:
            store, rpc = servicer.backend.store, body.__name__
            async with store.transaction(current_actor().name, rpc) as tx:
                answer = await _answered(servicer, tx, request)
            # Not within the transaction: others may change things meanwhile.
            if wait_ms := wait_ms_of(request):
                revoker = servicer.backend.revoker
                propagation = await revoker.propagated(tx.revision, wait_ms=wait_ms)
                getattr(answer, PROPAGATION).CopyFrom(propagation_to_proto(propagation))
            return answer

        async def _answered(servicer: ServicerT, tx: Transaction, request: RequestT) -> AnswerT:
            what = without_waiting(request)
            tx.describe(resource_of(request), audited(what))
            repetition = _repetition(tx, what)
            if repetition and (kept := await repetition.replay()) is not None:
                return answer_type.FromString(kept)
            if getattr(request, "validate_only", False):
                tx.discard()
            make_answer = await body(servicer, tx, request)
            await tx.seal()
            answer = make_answer()
            if repetition:
                await repetition.keep(without_secrets(answer).SerializeToString())
            return answer

        return method

    return decorate


def _repetition(tx: Transaction, request: Message) -> Idempotency | None:
    request_id = getattr(request, "request_id", "")
    if not request_id:
        return None
    digest = hashlib.sha256(request.SerializeToString(deterministic=True)).digest()
    return Idempotency(tx, request_id, digest)


# They have an id beside a name that says nothing, or beside the name of something else.
_NAMED_BY_ID: Final = frozenset(
    {"tollkeeper.admin.v1.Device", "tollkeeper.admin.v1.ApproveDeviceRequest"}
)


def resource_of(request: Message) -> str:
    """Return what a request is about, as the audit shows it: a name, a subject or an id."""
    found = _named(request)
    if found:
        return found
    for field, value in request.ListFields():
        if field.message_type is not None and not field.is_repeated:
            found = _named(value)
            if found:
                return found
    return ""


def _named(message: Any) -> str:  # Any: asked for fields that it may not have
    if message.DESCRIPTOR.full_name in _NAMED_BY_ID:
        return str(message.id)
    for field in ("name", "subject", "router", "id"):
        value = getattr(message, field, "")
        if isinstance(value, str) and value:
            return value
    provider, model = getattr(message, "provider", ""), getattr(message, "model", "")
    if isinstance(provider, str) and isinstance(model, str) and model:
        return f"{provider} {model}"
    return ""
