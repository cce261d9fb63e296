"""A control plane with a script: a real gRPC server whose services record what they are asked and answer as told."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any, TypeAlias

import grpc
from google.protobuf import any_pb2
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]  # has none
from grpc_status import rpc_status  # type: ignore[import-untyped]  # has none
from tollkeeper.admin.v1 import (
    administrator_service_pb2,
    administrator_service_pb2_grpc,
    api_key_service_pb2,
    api_key_service_pb2_grpc,
    audit_service_pb2,
    audit_service_pb2_grpc,
    budget_service_pb2,
    budget_service_pb2_grpc,
    configuration_service_pb2,
    configuration_service_pb2_grpc,
    credential_service_pb2,
    credential_service_pb2_grpc,
    device_service_pb2,
    device_service_pb2_grpc,
    limit_service_pb2,
    limit_service_pb2_grpc,
    node_service_pb2,
    node_service_pb2_grpc,
    operations_service_pb2,
    operations_service_pb2_grpc,
    organization_service_pb2,
    organization_service_pb2_grpc,
    price_service_pb2,
    price_service_pb2_grpc,
    provider_service_pb2,
    provider_service_pb2_grpc,
    router_service_pb2,
    router_service_pb2_grpc,
    tier_service_pb2,
    tier_service_pb2_grpc,
    usage_service_pb2,
    usage_service_pb2_grpc,
    user_service_pb2,
    user_service_pb2_grpc,
)

_DEADLINE_S = 10
_SERVICES: tuple[tuple[ModuleType, ModuleType], ...] = (
    (administrator_service_pb2, administrator_service_pb2_grpc),
    (api_key_service_pb2, api_key_service_pb2_grpc),
    (audit_service_pb2, audit_service_pb2_grpc),
    (budget_service_pb2, budget_service_pb2_grpc),
    (configuration_service_pb2, configuration_service_pb2_grpc),
    (credential_service_pb2, credential_service_pb2_grpc),
    (device_service_pb2, device_service_pb2_grpc),
    (limit_service_pb2, limit_service_pb2_grpc),
    (node_service_pb2, node_service_pb2_grpc),
    (operations_service_pb2, operations_service_pb2_grpc),
    (organization_service_pb2, organization_service_pb2_grpc),
    (price_service_pb2, price_service_pb2_grpc),
    (provider_service_pb2, provider_service_pb2_grpc),
    (router_service_pb2, router_service_pb2_grpc),
    (tier_service_pb2, tier_service_pb2_grpc),
    (usage_service_pb2, usage_service_pb2_grpc),
    (user_service_pb2, user_service_pb2_grpc),
)


@dataclass(frozen=True, slots=True)
class Refusal:
    """An answer that refuses; without a reason it carries no details, as from a server that is not ours."""

    code: grpc.StatusCode
    message: str
    reason: str | None = None
    field: str | None = None
    bad_request_fields: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Silence:
    """No answer before the caller gives up."""


Answer: TypeAlias = Message | Refusal | Silence


@dataclass(frozen=True, slots=True)
class Asked:
    """A request that arrived."""

    rpc: str
    # A message of any of the services; tests read its fields.
    request: Any
    metadata: dict[str, str]
    remaining_s: float


@dataclass(slots=True)
class ScriptedControlPlane:
    """What it was asked, and what it answers next, by RPC. Without an answer it sends an empty message."""

    address: str
    asked: list[Asked] = field(default_factory=list)
    answers: dict[str, list[Answer]] = field(default_factory=dict)

    def will_answer(self, rpc: str, *answers: Answer) -> None:
        """Queue answers of an RPC."""
        self.answers.setdefault(rpc, []).extend(answers)

    def requests(self, rpc: str) -> list[Any]:  # Any: messages of that RPC
        """Return the requests that an RPC got."""
        return [asked.request for asked in self.asked if asked.rpc == rpc]

    def only_request(self) -> Any:  # Any: a message of the one RPC that was called
        """Return the request of the only call there was."""
        assert len(self.asked) == 1
        return self.asked[0].request

    async def answer(
        self,
        rpc: str,
        empty: Message,
        request: Message,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> Message:
        metadata = dict(context.invocation_metadata() or ())
        self.asked.append(
            Asked(rpc, request, metadata, context.time_remaining())  # type: ignore[arg-type]  # values of text keys are text
        )
        queue = self.answers.get(rpc)
        match queue.pop(0) if queue else empty:
            case Refusal() as refusal:
                await _refuse(refusal, context)
            case Silence():
                await asyncio.Event().wait()
            case Message() as message:
                return message
        raise AssertionError("unreachable")


async def _refuse(refusal: Refusal, context: grpc.aio.ServicerContext[Any, Any]) -> None:
    if refusal.reason is None:
        await context.abort(refusal.code, refusal.message)
    info = error_details_pb2.ErrorInfo(reason=refusal.reason, domain="tollkeeper")
    if refusal.field is not None:
        info.metadata["field"] = refusal.field
    details = [info]
    if refusal.bad_request_fields:
        bad_request = error_details_pb2.BadRequest()
        for name in refusal.bad_request_fields:
            bad_request.field_violations.add(field=name)
        details.append(bad_request)
    status = status_pb2.Status(code=refusal.code.value[0], message=refusal.message)
    for detail in details:
        packed = any_pb2.Any()
        packed.Pack(detail)
        status.details.append(packed)
    await context.abort_with_status(rpc_status.to_status(status))


def _register(control_plane: ScriptedControlPlane, server: grpc.aio.Server) -> None:
    """Add an implementation of every admin service, of the generated servicer classes."""
    for messages, stubs in _SERVICES:
        for name, service in messages.DESCRIPTOR.services_by_name.items():
            methods = {
                method.name: _method(control_plane, method.name, method.output_type._concrete_class)
                for method in service.methods
            }
            servicer = type(f"Scripted{name}", (getattr(stubs, f"{name}Servicer"),), methods)()
            getattr(stubs, f"add_{name}Servicer_to_server")(servicer, server)


def _method(control_plane: ScriptedControlPlane, rpc: str, answer_type: type[Message]) -> object:
    async def answer(
        self: object, request: Message, context: grpc.aio.ServicerContext[Any, Any]
    ) -> Message:
        return await control_plane.answer(rpc, answer_type(), request, context)

    return answer


@contextmanager
def serving(tls: grpc.ServerCredentials | None = None) -> Iterator[ScriptedControlPlane]:
    """Serve on a free port of the loopback, on an event loop of its own thread."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="scripted control plane")
    thread.start()

    async def start() -> tuple[grpc.aio.Server, ScriptedControlPlane]:
        server = grpc.aio.server()
        control_plane = ScriptedControlPlane(address="")
        _register(control_plane, server)
        if tls is None:
            port = server.add_insecure_port("127.0.0.1:0")
        else:
            port = server.add_secure_port("127.0.0.1:0", tls)
        await server.start()
        control_plane.address = f"127.0.0.1:{port}"
        return server, control_plane

    server, control_plane = asyncio.run_coroutine_threadsafe(start(), loop).result(_DEADLINE_S)
    try:
        yield control_plane
    finally:
        asyncio.run_coroutine_threadsafe(server.stop(None), loop).result(_DEADLINE_S)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(_DEADLINE_S)
        loop.close()
