"""`doctor`: what it finds, what it advises, and what it never says."""

import email.utils
import json
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from tollkeeper.admin.v1 import (
    node_service_pb2,
    operations_service_pb2,
    price_service_pb2,
    router_service_pb2,
)
from tollkeeper.common.v1 import errors_pb2
from tollkeeper.common.v1.position_pb2 import Position

from controlplane.cli import doctor_service
from controlplane.cli.doctor_service import unpriced_models
from controlplane.cli.profile import DeviceCredential, KeyCredential, Profile, write_profile
from tests.cli.conftest import TOKEN, Run
from tests.cli.gateways import ScriptedGateway, serving_gateway
from tests.cli.scripted import Refusal, ScriptedControlPlane

KEY = "tk_live_secretkey"
DEVICE = DeviceCredential("abcdefghijkl", "tks_secrettoken")
READY: dict[str, Any] = {
    "status": "ready",
    "version": "0.1.0",
    "limits": "closed",
    "unreported_records": 3,
    "in_flight": 0,
    "configuration": {"revision": 42, "age_ms": 61_000},
}
HERE = Position(config_epoch="e1", revision=42, digest=b"d" * 32)
PRICE = price_service_pb2.Price

Diagnose = Callable[[], tuple[int, dict[str, dict[str, Any]]]]


@pytest.fixture
def gateway() -> Iterator[ScriptedGateway]:
    """A gateway that is well, and whose key is in the profile."""
    with serving_gateway() as scripted:
        write_profile(Profile(scripted.url, KeyCredential(KEY)))
        yield scripted


@pytest.fixture
def diagnose(program: Run) -> Diagnose:
    """The exit code of `doctor -o json` and its findings by check; of several the last that is wrong."""

    def run() -> tuple[int, dict[str, dict[str, Any]]]:
        result = program("doctor", "-o", "json")
        findings = json.loads(result.stdout)
        assert all(set(each) == {"check", "ok", "detail", "advice"} for each in findings)
        # Whoever is told that something is wrong is told what to do.
        assert all(each["ok"] is (each["advice"] == "") for each in findings)
        for secret in (KEY, DEVICE.session_token, TOKEN):
            assert secret not in result.output
        findings.sort(key=lambda each: not each["ok"])
        return result.exit_code, {each["check"]: each for each in findings}

    return run


def is_well(gateway: ScriptedGateway, **readiness: Any) -> None:
    gateway.will_answer("GET /health/ready", {**READY, **readiness})
    gateway.will_answer("GET /v1/models", {"data": [{"id": "mock-echo"}]})


def test_a_set_up_that_is_well_is_exit_code_0(diagnose: Diagnose, gateway: ScriptedGateway) -> None:
    is_well(gateway)

    exit_code, findings = diagnose()

    assert exit_code == 0, findings
    assert all(finding["ok"] for finding in findings.values())
    assert "configuration 42, applied 61 s ago; 3 records" in findings["gateway"]["detail"]
    assert findings["credential"]["detail"] == "accepted, from the profile: 1 model"
    assert gateway.asked[-1].headers["authorization"] == f"Bearer {KEY}"
    assert "authorization" not in gateway.asked[0].headers


def test_without_json_it_is_a_table_with_the_advice(program: Run) -> None:
    result = program("doctor")

    assert result.exit_code == 1
    assert "tollkeeper login" in result.stdout
    assert "1 of" in result.stderr


def test_a_misspelt_setting_is_named(
    diagnose: Diagnose, gateway: ScriptedGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_well(gateway)
    monkeypatch.setenv("TOLLKEEPER_DIALY_BUDGET_USD", "7")

    exit_code, findings = diagnose()

    assert exit_code == 1
    assert "TOLLKEEPER_DIALY_BUDGET_USD" in findings["environment"]["detail"]


def test_a_setting_that_cannot_be_used_is_a_finding_and_no_crash(
    diagnose: Diagnose, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOLLKEEPER_URL", "gateway.example")
    monkeypatch.setenv("TOLLKEEPER_API_KEY", KEY)
    monkeypatch.setenv("TOLLKEEPER_ADMIN_TOKEN", TOKEN)
    monkeypatch.setenv("TOLLKEEPER_ADMIN_ADDRESS", "nowhere")

    exit_code, findings = diagnose()

    assert exit_code == 1
    assert "TOLLKEEPER_URL" in findings["credential"]["detail"]
    assert "TOLLKEEPER_ADMIN_ADDRESS" in findings["control plane"]["detail"]


def test_a_profile_that_others_can_read_is_a_finding(
    diagnose: Diagnose, gateway: ScriptedGateway
) -> None:
    path = write_profile(Profile(gateway.url, KeyCredential(KEY)))
    path.chmod(0o644)

    exit_code, findings = diagnose()

    assert exit_code == 1
    assert f"chmod 600 {path}" in findings["profile"]["detail"]


def test_a_profile_that_others_could_replace_is_a_finding(
    diagnose: Diagnose, gateway: ScriptedGateway
) -> None:
    is_well(gateway)
    path = write_profile(Profile(gateway.url, KeyCredential(KEY)))
    path.parent.chmod(0o770)

    exit_code, findings = diagnose()

    assert exit_code == 1
    assert findings["profile"]["advice"] == f"run `chmod 700 {path.parent}`"


@pytest.mark.parametrize(("folder_mode", "ok"), [(0o700, True), (0o755, False)])
def test_credentials_of_dev_that_others_can_reach_are_a_finding(
    diagnose: Diagnose, gateway: ScriptedGateway, tmp_path: Path, folder_mode: int, ok: bool
) -> None:
    is_well(gateway)
    folder = tmp_path / ".tollkeeper"
    folder.mkdir()
    folder.chmod(folder_mode)
    (folder / "credentials.json").write_text("{}")
    (folder / "credentials.json").chmod(0o644)

    _, findings = diagnose()

    assert findings["dev directory"]["ok"] is ok
    assert ok or "credentials.json" in findings["dev directory"]["detail"]


def test_a_gateway_that_is_away_is_a_finding(diagnose: Diagnose) -> None:
    write_profile(Profile("http://127.0.0.1:1", KeyCredential(KEY)))

    exit_code, findings = diagnose()

    assert exit_code == 1
    assert "http://127.0.0.1:1" in findings["gateway"]["detail"]
    assert not findings["credential"]["ok"]


@pytest.mark.parametrize(
    ("readiness", "words"),
    [
        ({"limits": "open"}, "counters in Redis cannot be read"),
        ({"draining": True}, "draining"),
        ({"configuration": {"error": "configuration_unavailable"}}, "no configuration is applied"),
    ],
)
def test_a_gateway_that_is_not_ready_says_why(
    diagnose: Diagnose, gateway: ScriptedGateway, readiness: dict[str, Any], words: str
) -> None:
    gateway.will_answer("GET /health/ready", {**READY, "status": "not_ready", **readiness}, 503)
    gateway.will_answer("GET /v1/models", {"data": [{"id": "mock-echo"}]})

    exit_code, findings = diagnose()

    assert exit_code == 1
    assert words in findings["gateway"]["detail"]


def test_what_is_no_gateway_is_a_finding(diagnose: Diagnose, gateway: ScriptedGateway) -> None:
    gateway.will_answer("GET /health/ready", "hello")

    exit_code, findings = diagnose()

    assert exit_code == 1
    assert "no gateway" in findings["gateway"]["detail"]


@pytest.mark.parametrize(
    ("ahead_s", "words"),
    [(-600, "600 s ahead of"), (600, "600 s behind"), (-3, "agrees"), (3, "agrees")],
)
def test_a_clock_that_is_off_is_a_finding(
    diagnose: Diagnose, gateway: ScriptedGateway, ahead_s: float, words: str
) -> None:
    date = email.utils.formatdate(time.time() + ahead_s, usegmt=True)
    gateway.will_answer("GET /health/ready", READY, date=date)
    gateway.will_answer("GET /v1/models", {"data": [{"id": "mock-echo"}]})

    exit_code, findings = diagnose()

    detail = findings["clock"]["detail"].replace("599", "600").replace("601", "600")
    assert words in detail
    assert exit_code == ("agrees" not in words)


@pytest.mark.parametrize(
    ("status", "code", "details", "advice"),
    [
        (401, "invalid_api_key", {}, "tollkeeper login"),
        (
            403,
            "device_not_approved",
            {"status": "pending_approval"},
            "tollkeeper device approve abcdefghijkl",
        ),
        (403, "device_not_approved", {"status": "revoked"}, "tollkeeper login --device"),
        (403, "user_suspended", {}, "operator"),
    ],
)
def test_a_refused_credential_is_a_finding_with_the_way_out(
    diagnose: Diagnose,
    gateway: ScriptedGateway,
    status: int,
    code: str,
    details: dict[str, str],
    advice: str,
) -> None:
    write_profile(Profile(gateway.url, DEVICE))
    gateway.will_answer("GET /health/ready", READY)
    gateway.will_refuse("GET /v1/models", status, code, details)

    exit_code, findings = diagnose()

    assert exit_code == 1
    assert code in findings["credential"]["detail"]
    assert advice in findings["credential"]["advice"]


def test_a_credential_without_models_is_a_finding(
    diagnose: Diagnose, gateway: ScriptedGateway
) -> None:
    gateway.will_answer("GET /health/ready", READY)
    gateway.will_answer("GET /v1/models", {"data": []})

    exit_code, findings = diagnose()

    assert exit_code == 1
    assert "prices" in findings["credential"]["advice"]


@pytest.fixture
def administrator(
    control_plane: ScriptedControlPlane, monkeypatch: pytest.MonkeyPatch
) -> ScriptedControlPlane:
    """A control plane whose administrator has no credential as a client."""
    monkeypatch.setenv("TOLLKEEPER_ADMIN_ADDRESS", control_plane.address)
    monkeypatch.setenv("TOLLKEEPER_ADMIN_TOKEN", TOKEN)
    monkeypatch.setattr(doctor_service, "SETTLING_S", 0.0)
    return control_plane


def nodes_with(**fields: Any) -> node_service_pb2.ListNodesResponse:
    node = node_service_pb2.Node(**{"node_id": "dp-1", "applied": HERE, **fields})
    return node_service_pb2.ListNodesResponse(current=HERE, nodes=[node])


def test_an_administrators_service_that_is_well_is_exit_code_0(
    diagnose: Diagnose, administrator: ScriptedControlPlane
) -> None:
    status = operations_service_pb2.ServiceStatus(
        version="0.1.0", database="sqlite", pending_devices=2
    )
    administrator.will_answer("GetServiceStatus", status)
    administrator.will_answer("ListNodes", nodes_with())

    exit_code, findings = diagnose()

    assert exit_code == 0, findings
    assert "2 devices wait" in findings["control plane"]["detail"]
    assert findings["data planes"]["detail"] == "1 data plane in step"
    assert "none of a client" in findings["credential"]["detail"]
    assert "gateway" not in findings


@pytest.mark.parametrize(
    ("nodes", "words"),
    [
        (node_service_pb2.ListNodesResponse(current=HERE), "no data plane is connected"),
        (nodes_with(limits_unavailable=True), "Redis"),
        (nodes_with(quarantined=["key k1: bad"]), "key k1: bad"),
        (nodes_with(applied=Position(config_epoch="e1", revision=40)), "2 revisions behind"),
        (
            nodes_with(not_ready=errors_pb2.ERROR_REASON_CONFIGURATION_UNAVAILABLE),
            "configuration_unavailable",
        ),
    ],
)
def test_a_data_plane_that_is_not_well_is_a_finding(
    diagnose: Diagnose,
    administrator: ScriptedControlPlane,
    nodes: node_service_pb2.ListNodesResponse,
    words: str,
) -> None:
    is_behind = any(node.applied != HERE for node in nodes.nodes)
    administrator.will_answer("ListNodes", *[nodes] * (2 if is_behind else 1))

    exit_code, findings = diagnose()

    assert exit_code == 1
    assert words in findings["data planes"]["detail"]


def test_a_data_plane_that_catches_up_at_once_is_well(
    diagnose: Diagnose, administrator: ScriptedControlPlane
) -> None:
    behind = nodes_with(applied=Position(config_epoch="e1", revision=41))
    administrator.will_answer("ListNodes", behind, nodes_with())

    exit_code, findings = diagnose()

    assert exit_code == 0, findings


def test_a_refused_token_is_a_finding(
    diagnose: Diagnose, administrator: ScriptedControlPlane
) -> None:
    administrator.will_answer(
        "GetServiceStatus", Refusal(grpc.StatusCode.UNAUTHENTICATED, "unknown token")
    )

    exit_code, findings = diagnose()

    assert exit_code == 1
    assert "unauthenticated: unknown token" in findings["control plane"]["detail"]
    assert "TOLLKEEPER_ADMIN_TOKEN" in findings["control plane"]["advice"]


def test_routers_without_rules_and_models_without_a_price_are_findings(
    diagnose: Diagnose, administrator: ScriptedControlPlane
) -> None:
    rule = router_service_pb2.Rule(provider="up", models=["gpt-4o", "o3"])
    routers = [
        router_service_pb2.Router(name="acme/r1", rules=[rule]),
        router_service_pb2.Router(name="acme/r2"),
    ]
    administrator.will_answer("ListNodes", nodes_with())
    administrator.will_answer(
        "ListRouters", router_service_pb2.ListRoutersResponse(routers=routers)
    )
    administrator.will_answer(
        "ListPrices",
        price_service_pb2.ListPricesResponse(prices=[PRICE(provider="up", model="gpt-*")]),
    )

    exit_code, findings = diagnose()

    assert exit_code == 1
    assert "acme/r2" in findings["routers"]["detail"]
    assert "no price: up o3;" in findings["prices"]["detail"]


@pytest.mark.parametrize(
    ("models", "aliases", "prices", "unpriced"),
    [
        (["gpt-*", "*"], {}, [], []),
        (["gpt-4o"], {}, [PRICE(provider="up", model="gpt-4o")], []),
        (["gpt-4o"], {}, [PRICE(provider="openai", model="gpt-4o*")], []),
        (["gpt-4o"], {}, [PRICE(provider="mock", model="*")], ["up gpt-4o"]),
        (["fast"], {"fast": "gpt-4o"}, [PRICE(provider="up", model="gpt-4o")], []),
        (["*"], {"fast": "o3"}, [PRICE(provider="up", model="fast")], ["up o3"]),
        (
            ["gpt-4o"],
            {},
            [PRICE(provider="up", model="gpt-4o", effective_from=Timestamp(seconds=10**10))],
            ["up gpt-4o"],
        ),
    ],
)
def test_a_model_is_unpriced_where_no_price_of_its_provider_or_kind_is_for_it_now(
    models: list[str],
    aliases: dict[str, str],
    prices: list[price_service_pb2.Price],
    unpriced: list[str],
) -> None:
    rule = router_service_pb2.Rule(provider="up", models=models, aliases=aliases)
    routers = [router_service_pb2.Router(name="r", rules=[rule])]

    assert unpriced_models(routers, {"up": "openai"}, prices, datetime.now(UTC)) == unpriced
