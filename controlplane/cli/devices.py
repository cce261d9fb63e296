"""`tollkeeper device`: installations of client programs, which register themselves and are approved."""

from datetime import timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Final, TypeAlias

import typer

from controlplane.cli.connection import admin_channel
from controlplane.cli.durations import duration_from_text
from controlplane.cli.lazy_modules import imported_on_use
from controlplane.cli.options import Models, OfTier, OfUser, Output, require_changes, words
from controlplane.cli.output import Format, note, print_many, print_one
from controlplane.cli.paging import all_pages
from controlplane.cli.receipts import (
    TerminateStreams,
    Wait,
    deadline_s,
    milliseconds,
    print_receipt,
)
from controlplane.cli.typer_apps import example, new_app, reader
from controlplane.cli.waiting import waits

if TYPE_CHECKING:
    from google.protobuf import duration_pb2, field_mask_pb2
    from tollkeeper.admin.v1 import device_service_pb2 as pb
    from tollkeeper.admin.v1 import device_service_pb2_grpc as rpc
    from tollkeeper.common.v1 import devices_pb2
else:
    duration_pb2 = imported_on_use("google.protobuf.duration_pb2")
    field_mask_pb2 = imported_on_use("google.protobuf.field_mask_pb2")
    pb = imported_on_use("tollkeeper.admin.v1.device_service_pb2")
    rpc = imported_on_use("tollkeeper.admin.v1.device_service_pb2_grpc")
    devices_pb2 = imported_on_use("tollkeeper.common.v1.devices_pb2")

app = new_app("Devices: installations of client programs, which register themselves.")

_COLUMNS = (
    "id",
    "name",
    "status",
    "user",
    "tier",
    "platform",
    "version",
    "address",
    "last_seen_at",
    "suspended_until",
)
# What the contract takes.
_SHORTEST_SUSPENSION: Final = timedelta(seconds=1)
_LONGEST_SUSPENSION: Final = timedelta(days=3650)


class Status(StrEnum):
    """Where a device stands in its life."""

    PENDING_APPROVAL = "pending_approval"
    APPROVED = "approved"
    REJECTED = "rejected"
    SUSPENDED = "suspended"
    REVOKED = "revoked"


def _period(text: str) -> timedelta:
    period = duration_from_text(text)
    if not _SHORTEST_SUSPENSION <= period <= _LONGEST_SUSPENSION:
        raise ValueError(f"{text!r} is not between 1s and 3650d")
    return period


DeviceId: TypeAlias = Annotated[
    str, typer.Argument(metavar="ID", help="Which, as `device list` shows it.", show_default=False)
]


@app.command("list", epilog=example("device list --status pending_approval"))
def list_all(
    status: Annotated[
        Status | None, typer.Option(help="Only those that stand there now.", show_default=False)
    ] = None,
    user: OfUser = "",
    output: Output = Format.TABLE,
) -> None:
    """List devices, by id."""
    with admin_channel() as channel:
        wanted = devices_pb2.DeviceStatus.Value(
            f"DEVICE_STATUS_{status.name if status else 'UNSPECIFIED'}"
        )
        found = all_pages(
            rpc.DeviceServiceStub(channel).ListDevices,
            pb.ListDevicesRequest(status=wanted, user=user),
            lambda page: page.devices,
        )
        print_many(found, output, _COLUMNS)


@app.command(epilog=example("device get 3k2v9q0m5t7x -o json"))
def get(device_id: DeviceId, output: Output = Format.TABLE) -> None:
    """Show a device: whose it is, where it stands, and what it last said of itself."""
    with admin_channel() as channel:
        service = rpc.DeviceServiceStub(channel)
        print_one(service.GetDevice(pb.GetDeviceRequest(id=device_id)), output)


@app.command(
    epilog=example(
        "device approve 3k2v9q0m5t7x --user acme/alice",
        "device approve 3k2v9q0m5t7x --user acme/alice --tier paid --models 'gpt-*'",
    )
)
@waits
def approve(
    device_id: DeviceId,
    user: Annotated[str, typer.Option(help="Whose it becomes: acme/alice.", show_default=False)],
    tier: OfTier = None,
    router: Annotated[
        str, typer.Option(help="The router of its calls; a bare name is the organization's own.")
    ] = "default",
    models: Models = None,
    output: Output = Format.TABLE,
) -> None:
    """Give a device that waits, or was rejected, to a user. It may call within a second."""
    with admin_channel() as channel:
        request = pb.ApproveDeviceRequest(
            id=device_id, user=user, tier=tier or "", router=router, allowed_models=words(models)
        )
        print_one(rpc.DeviceServiceStub(channel).ApproveDevice(request), output)


@app.command(epilog=example("device reject 3k2v9q0m5t7x"))
@waits
def reject(device_id: DeviceId, output: Output = Format.TABLE) -> None:
    """Say no to a device that waits. It may still be approved later."""
    with admin_channel() as channel:
        service = rpc.DeviceServiceStub(channel)
        print_one(service.RejectDevice(pb.RejectDeviceRequest(id=device_id)), output)


@app.command(epilog=example("device suspend 3k2v9q0m5t7x --for 24h --reason 'too many requests'"))
@waits
def suspend(
    device_id: DeviceId,
    period: Annotated[
        timedelta,
        typer.Option(
            "--for",
            parser=reader(_period),
            metavar="TIME",
            help="For how long from now on, 1s to 3650d.",
        ),
    ] = "24h",  # type: ignore[assignment]  # Typer gives a default to the parser, and shows it
    reason: Annotated[
        str, typer.Option(help="Why; the device's user reads it.", show_default=False)
    ] = "",
    output: Output = Format.TABLE,
) -> None:
    """Refuse a device's calls for a while. It ends by itself; on a suspended device, sets another end."""
    with admin_channel() as channel:
        duration = duration_pb2.Duration()
        duration.FromTimedelta(period)
        request = pb.SuspendDeviceRequest(id=device_id, period=duration, reason=reason)
        print_one(rpc.DeviceServiceStub(channel).SuspendDevice(request), output)


@app.command(epilog=example("device resume 3k2v9q0m5t7x"))
@waits
def resume(device_id: DeviceId, output: Output = Format.TABLE) -> None:
    """End the suspension of a device before its time."""
    with admin_channel() as channel:
        service = rpc.DeviceServiceStub(channel)
        print_one(service.ResumeDevice(pb.ResumeDeviceRequest(id=device_id)), output)


@app.command(epilog=example("device revoke 3k2v9q0m5t7x --wait 2s --terminate"))
def revoke(
    device_id: DeviceId,
    wait: Wait = "2s",  # type: ignore[assignment]  # Typer gives a default to the parser, and shows it
    terminate_streams: TerminateStreams = False,
    output: Output = Format.TABLE,
) -> None:
    """Take a device out of service for good, and show which data planes refuse it by now.

    One that has not answered yet is no failure: the revocation stands, and it obeys when it returns.
    """
    with admin_channel() as channel:
        request = pb.RevokeDeviceRequest(
            id=device_id, wait_ms=milliseconds(wait), terminate_streams=terminate_streams
        )
        service = rpc.DeviceServiceStub(channel)
        print_receipt(service.RevokeDevice(request, timeout=deadline_s(wait)), output)


@app.command(epilog=example("device rotate 3k2v9q0m5t7x -o json"))
@waits
def rotate(device_id: DeviceId, output: Output = Format.TABLE) -> None:
    """Replace the session token and show the new one, this once. The old one is refused within a second."""
    with admin_channel() as channel:
        request = pb.RotateSessionTokenRequest(id=device_id)
        rotated = rpc.DeviceServiceStub(channel).RotateSessionToken(request)
        print_one({"id": rotated.device.id, "session_token": rotated.session_token}, output)
        note("The session token is shown this once: keep it now.")


@app.command(
    epilog=example(
        "device update 3k2v9q0m5t7x --tier paid --models 'gpt-*'",
        "device update 3k2v9q0m5t7x --tier none",
    )
)
@waits
def update(
    device_id: DeviceId,
    name: Annotated[str | None, typer.Option(help="What it is called.")] = None,
    tier: OfTier = None,
    router: Annotated[str | None, typer.Option(help="The router of its calls.")] = None,
    models: Models = None,
    output: Output = Format.TABLE,
) -> None:
    """Change what is given, and nothing else."""
    given = {"name": name, "tier": tier, "router": router, "allowed_models": models}
    paths = [field for field, value in given.items() if value is not None]
    require_changes(paths)
    with admin_channel() as channel:
        device = pb.Device(
            id=device_id,
            name=name or "",
            tier=tier or "",
            router=router or "",
            allowed_models=words(models),
        )
        mask = field_mask_pb2.FieldMask(paths=paths)
        request = pb.UpdateDeviceRequest(device=device, update_mask=mask)
        print_one(rpc.DeviceServiceStub(channel).UpdateDevice(request), output)


@app.command(epilog=example("device delete 3k2v9q0m5t7x"))
@waits
def delete(device_id: DeviceId, output: Output = Format.TABLE) -> None:
    """Remove a device, with its limits. To stop one that has leaked, revoke it: that has a receipt."""
    with admin_channel() as channel:
        service = rpc.DeviceServiceStub(channel)
        print_one(service.DeleteDevice(pb.DeleteDeviceRequest(id=device_id)), output)
