"""`tollkeeper doctor`: what is wrong with this set-up, and what to do."""

import os
from collections.abc import Iterator
from typing import Final

import typer

from controlplane.cli.doctor_gateway import gateway_findings
from controlplane.cli.doctor_machine import (
    dev_directory_finding,
    environment_finding,
    profile_finding,
)
from controlplane.cli.doctor_service import service_findings
from controlplane.cli.findings import Finding
from controlplane.cli.options import Output
from controlplane.cli.output import Format, note, print_many

_COLUMNS: Final = ("check", "ok", "detail", "advice")


def doctor(output: Output = Format.TABLE) -> None:
    """Look for what is wrong with this set-up, and say what to do about it.

    It looks at the environment, the profile, the gateway and, with an administrator's token, at the
    control plane and its data planes. Exit code 0 when all is well, 1 when something is wrong.
    """
    findings = list(_look())
    print_many((finding.record() for finding in findings), output, _COLUMNS)
    wrong = sum(not finding.ok for finding in findings)
    if wrong:
        note(f"{wrong} of {len(findings)} checks found something wrong")
        raise typer.Exit(1)
    note("all is well")


def _look() -> Iterator[Finding]:
    yield environment_finding(os.environ)
    yield profile_finding()
    yield dev_directory_finding()
    yield from gateway_findings()
    yield from service_findings()
