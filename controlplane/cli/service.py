"""`tollkeeper service`: the service as a whole, refused or admitted."""

from typing import TYPE_CHECKING

from controlplane.cli.connection import admin_channel
from controlplane.cli.lazy_modules import imported_on_use
from controlplane.cli.options import Output
from controlplane.cli.output import Format, print_one
from controlplane.cli.typer_apps import example, new_app
from controlplane.cli.waiting import waits

if TYPE_CHECKING:
    from tollkeeper.admin.v1 import operations_service_pb2 as pb
    from tollkeeper.admin.v1 import operations_service_pb2_grpc as rpc
else:
    pb = imported_on_use("tollkeeper.admin.v1.operations_service_pb2")
    rpc = imported_on_use("tollkeeper.admin.v1.operations_service_pb2_grpc")

app = new_app("The service as a whole. `status` shows how it is.")


@app.command(epilog=example("service pause"))
@waits
def pause(output: Output = Format.TABLE) -> None:
    """Refuse every call of every organization until the service is resumed. `org update --paused` pauses one."""
    with admin_channel() as channel:
        service = rpc.OperationsServiceStub(channel)
        print_one(service.PauseService(pb.PauseServiceRequest()), output)


@app.command(epilog=example("service resume"))
@waits
def resume(output: Output = Format.TABLE) -> None:
    """End the pause of the service. Organizations that are paused themselves stay so."""
    with admin_channel() as channel:
        service = rpc.OperationsServiceStub(channel)
        print_one(service.ResumeService(pb.ResumeServiceRequest()), output)
