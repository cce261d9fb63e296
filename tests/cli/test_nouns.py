"""What each command asks of the control plane, and what it prints of the answer."""

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import yaml
from tollkeeper.admin.v1.administrator_service_pb2 import (
    Administrator,
    CreateAdministratorResponse,
    Role,
)
from tollkeeper.admin.v1.api_key_service_pb2 import ApiKey, CreateApiKeyResponse
from tollkeeper.admin.v1.changes_pb2 import AppliedRevocation, DeleteResult, RevocationReceipt
from tollkeeper.admin.v1.credential_service_pb2 import Credential
from tollkeeper.admin.v1.node_service_pb2 import ListNodesResponse, Node
from tollkeeper.admin.v1.organization_service_pb2 import (
    ListOrganizationsResponse,
    Organization,
)
from tollkeeper.admin.v1.price_service_pb2 import Price
from tollkeeper.admin.v1.provider_service_pb2 import Provider
from tollkeeper.admin.v1.router_service_pb2 import Router, Rule
from tollkeeper.admin.v1.user_service_pb2 import User
from tollkeeper.common.v1.position_pb2 import Position
from tollkeeper.config.v1.resources_pb2 import Dialect, LimitsUnavailablePolicy

from controlplane.cli.plain import record_of
from tests.cli.conftest import Run
from tests.cli.scripted import ScriptedControlPlane

RunJson = Callable[..., Any]
API_KEY = "tk_live_abcdefghijkl_" + "s" * 43 + "check0"


def limits_of(request: Any) -> set[tuple[str, str, int, bool]]:
    """Return what a request sets: unit, window, capacity and whether it is unlimited."""
    rows = [record_of(limit) for limit in request.limits]
    return {(r["unit"], r["window"], r["capacity"], r["unlimited"]) for r in rows}  # type: ignore[misc]  # plain values


def test_an_organization_is_created_with_its_budgets(
    run_json: RunJson, control_plane: ScriptedControlPlane
) -> None:
    control_plane.will_answer("CreateOrganization", Organization(name="acme", id="o1", revision=7))

    printed = run_json(
        *["org", "create", "acme", "--monthly-budget-usd", "100", "--daily-budget-usd", "10"],
        *["--on-limits-unavailable", "open", "--time-zone", "Europe/Paris"],
    )

    request = control_plane.only_request()
    assert request.organization.name == "acme"
    assert request.organization.time_zone == "Europe/Paris"
    assert (
        request.organization.on_limits_unavailable
        == LimitsUnavailablePolicy.LIMITS_UNAVAILABLE_POLICY_OPEN
    )
    assert limits_of(request) == {
        ("spend", "month", 100_000_000_000, False),
        ("spend", "day", 10_000_000_000, False),
    }
    assert not any(limit.soft for limit in request.limits)
    assert printed["name"] == "acme"
    assert printed["revision"] == 7


def test_soft_makes_budgets_soft_and_leaves_counts_as_they_are(
    run_json: RunJson, control_plane: ScriptedControlPlane
) -> None:
    run_json(
        *["org", "create", "acme", "--monthly-budget-usd", "100", "--daily-requests", "5", "--soft"]
    )

    soft = {record_of(limit)["unit"]: limit.soft for limit in control_plane.only_request().limits}
    assert soft == {"spend": True, "requests": False}


def test_a_user_is_created_with_every_limit_of_the_command_line(
    run_json: RunJson, control_plane: ScriptedControlPlane
) -> None:
    run_json(
        *[
            "user",
            "create",
            "acme/alice",
            "--email",
            "alice@example.com",
            "--tier",
            "paid",
            "--daily-requests",
            "50",
        ],
        *["--daily-tokens", "100000", "--monthly-requests", "1000", "--monthly-budget-usd", "0.05"],
        *["--total-budget-usd", "1"],
    )

    request = control_plane.only_request()
    assert request.user == User(name="acme/alice", email="alice@example.com", tier="paid")
    assert limits_of(request) == {
        ("requests", "day", 50, False),
        ("tokens", "day", 100_000, False),
        ("requests", "month", 1000, False),
        ("spend", "month", 50_000_000, False),
        ("spend", "total", 1_000_000_000, False),
    }


def test_none_is_without_limit_and_zero_refuses_everything(
    run_json: RunJson, control_plane: ScriptedControlPlane
) -> None:
    run_json(
        *[
            "user",
            "create",
            "acme/alice",
            "--daily-requests",
            "none",
            "--monthly-budget-usd",
            "none",
            "--daily-tokens",
            "0",
        ]
    )

    assert limits_of(control_plane.only_request()) == {
        ("requests", "day", 0, True),
        ("spend", "month", 0, True),
        ("tokens", "day", 0, False),
    }


def test_an_update_names_only_the_fields_that_were_given(
    run_json: RunJson, control_plane: ScriptedControlPlane
) -> None:
    run_json(*["user", "update", "acme/alice", "--tier", "free"])

    request = control_plane.only_request()
    assert list(request.update_mask.paths) == ["tier"]
    assert request.user == User(name="acme/alice", tier="free")


def test_an_update_of_limits_alone_sets_them_and_shows_the_user(
    run_json: RunJson, control_plane: ScriptedControlPlane
) -> None:
    control_plane.will_answer("GetUser", User(name="acme/alice", id="u1"))

    printed = run_json(*["user", "update", "acme/alice", "--daily-requests", "7"])

    (request,) = control_plane.requests("SetLimits")
    assert request.limits.subject == "user:acme/alice"
    assert limits_of(request.limits) == {("requests", "day", 7, False)}
    assert control_plane.requests("UpdateUser") == []
    assert printed["id"] == "u1"


def test_an_organization_is_updated_with_its_budget(
    run_json: RunJson, control_plane: ScriptedControlPlane
) -> None:
    run_json(*["org", "update", "acme", "--paused", "--monthly-budget-usd", "5"])

    assert [asked.rpc for asked in control_plane.asked] == ["SetLimits", "UpdateOrganization"]
    (limits,) = control_plane.requests("SetLimits")
    (update,) = control_plane.requests("UpdateOrganization")
    assert limits.limits.subject == "organization:acme"
    assert update.organization == Organization(name="acme", paused=True)
    assert list(update.update_mask.paths) == ["paused"]


@pytest.mark.parametrize(("verb", "suspended"), [("suspend", True), ("activate", False)])
def test_a_user_is_suspended_and_activated(
    run_json: RunJson, control_plane: ScriptedControlPlane, verb: str, suspended: bool
) -> None:
    run_json("user", verb, "acme/alice")

    request = control_plane.only_request()
    assert list(request.update_mask.paths) == ["suspended"]
    assert request.user == User(name="acme/alice", suspended=suspended)


def test_a_key_is_shown_when_it_is_created(
    run_json: RunJson, control_plane: ScriptedControlPlane
) -> None:
    control_plane.will_answer(
        "CreateApiKey",
        CreateApiKeyResponse(
            key=ApiKey(name="acme/alice/laptop", id="abcdefghijkl"), api_key=API_KEY
        ),
    )
    before = datetime.now(UTC)

    printed = run_json(
        *["key", "create", "acme/alice/laptop", "--router", "default", "--models", "gpt-*"],
        *["--models", "claude-*,o3", "--expires", "90d"],
    )

    request = control_plane.only_request().api_key
    assert (request.name, request.router) == ("acme/alice/laptop", "default")
    assert list(request.allowed_models) == ["gpt-*", "claude-*", "o3"]
    expires_in = request.expires_at.ToDatetime(UTC) - before
    assert timedelta(days=90) <= expires_in < timedelta(days=90, minutes=1)
    assert printed["name"] == "acme/alice/laptop"
    assert printed["id"] == "abcdefghijkl"
    assert printed["api_key"] == API_KEY


def test_a_key_that_never_expires_loses_its_expiry(
    run_json: RunJson, control_plane: ScriptedControlPlane
) -> None:
    run_json(*["key", "update", "acme/alice/laptop", "--expires", "never"])

    request = control_plane.only_request()
    assert list(request.update_mask.paths) == ["expires_at"]
    assert not request.api_key.HasField("expires_at")


def test_a_revocation_answers_with_its_receipt(
    run_json: RunJson, control_plane: ScriptedControlPlane
) -> None:
    receipt = RevocationReceipt(
        revision=12, applied=[AppliedRevocation(node="n1", ms=3, is_kept=True)]
    )
    control_plane.will_answer("RevokeApiKey", receipt)

    printed = run_json(
        *["key", "revoke", "acme/alice/laptop", "--wait", "1500ms", "--terminate-streams"]
    )

    request = control_plane.only_request()
    assert (request.name, request.wait_ms, request.terminate_streams) == (
        "acme/alice/laptop",
        1500,
        True,
    )
    assert printed == {
        "revision": 12,
        "applied": [{"node": "n1", "ms": 3, "is_kept": True}],
        "missing": [],
    }


def test_a_revocation_that_misses_a_node_is_done_and_says_so(
    run: Run, control_plane: ScriptedControlPlane
) -> None:
    control_plane.will_answer("RevokeApiKey", RevocationReceipt(revision=12, missing=["n2"]))

    result = run(*["key", "revoke", "acme/alice/laptop", "-o", "json"])

    assert result.exit_code == 0
    assert json.loads(result.stdout)["missing"] == ["n2"]
    assert "n2" in result.stderr


def test_every_call_has_a_deadline_and_a_revocation_waits_longer(
    run_json: RunJson, control_plane: ScriptedControlPlane
) -> None:
    run_json("org", "get", "acme")
    run_json(*["key", "revoke", "acme/alice/laptop", "--wait", "20s"])

    get, revoke = (asked.remaining_s for asked in control_plane.asked)
    # The server may read a deadline as a little later than it was set.
    assert 5 < get < 11
    assert 25 < revoke < 31


def test_a_mock_provider_gets_an_endpoint_for_each_dialect_it_speaks(
    run_json: RunJson, control_plane: ScriptedControlPlane
) -> None:
    run_json(
        *[
            "provider",
            "create",
            "mock",
            "--kind",
            "mock",
            "--base-url",
            "http://127.0.0.1:9090",
            "--quirks",
            "groq",
        ]
    )

    provider = control_plane.only_request().provider
    assert (provider.name, provider.kind, list(provider.quirks)) == ("mock", "mock", ["groq"])
    assert {endpoint.dialect: endpoint.base_url for endpoint in provider.endpoints} == {
        Dialect.DIALECT_OPENAI: "http://127.0.0.1:9090/v1",
        Dialect.DIALECT_ANTHROPIC: "http://127.0.0.1:9090",
    }


def test_a_provider_without_a_base_url_is_called_where_its_kind_is(
    run_json: RunJson, control_plane: ScriptedControlPlane
) -> None:
    run_json(*["provider", "create", "acme/up", "--kind", "anthropic"])

    assert control_plane.only_request().provider == Provider(name="acme/up", kind="anthropic")


def test_a_bare_base_url_of_an_update_is_read_by_the_kind_the_provider_has(
    run_json: RunJson, control_plane: ScriptedControlPlane
) -> None:
    control_plane.will_answer("GetProvider", Provider(name="acme/up", kind="google"))

    run_json(*["provider", "update", "acme/up", "--base-url", "http://h:1/v1beta"])

    (request,) = control_plane.requests("UpdateProvider")
    assert list(request.update_mask.paths) == ["endpoints"]
    assert [endpoint.dialect for endpoint in request.provider.endpoints] == [Dialect.DIALECT_GOOGLE]


@pytest.mark.parametrize("verb", ["create", "rotate"])
def test_a_secret_comes_from_stdin_and_is_shown_nowhere(
    run: Run, control_plane: ScriptedControlPlane, verb: str
) -> None:
    control_plane.will_answer(
        f"{verb.title()}Credential", Credential(name="acme/up/main", version=1)
    )

    result = run("credential", verb, "acme/up/main", "--secret-stdin", stdin="sk-hunter2\r\n")

    assert result.exit_code == 0
    assert control_plane.only_request().secret == "sk-hunter2"
    assert "hunter2" not in result.output


@pytest.mark.parametrize("secret", ["", "\n", "two lines\nsk", "sk-ü", "sk hunter2", "x" * 8193])
def test_what_is_no_secret_is_wrong_usage_and_not_repeated(
    run: Run, control_plane: ScriptedControlPlane, secret: str
) -> None:
    result = run("credential", "create", "acme/up/main", "--secret-stdin", stdin=secret)

    assert result.exit_code == 2
    assert control_plane.asked == []
    assert "hunter2" not in result.output
    assert "xxx" not in result.output


def test_a_secret_needs_its_flag(run: Run, control_plane: ScriptedControlPlane) -> None:
    result = run("credential", "create", "acme/up/main", stdin="sk-hunter2")

    assert result.exit_code == 2
    assert control_plane.asked == []


def test_a_rule_is_created_with_weight_and_aliases(
    run_json: RunJson, control_plane: ScriptedControlPlane
) -> None:
    control_plane.will_answer("CreateRule", Rule(id="r1", models=["*"]))

    printed = run_json(
        *[
            "rule",
            "create",
            "acme/r1",
            "--priority",
            "0",
            "--provider",
            "acme/up",
            "--models",
            "*",
            "--weight",
            "3",
        ],
        *["--alias", "fast=gpt-4o-mini", "--alias", "odd=a=b"],
    )

    request = control_plane.only_request()
    assert request.router == "acme/r1"
    assert request.rule == Rule(
        priority=0,
        provider="acme/up",
        models=["*"],
        weight=3,
        aliases={"fast": "gpt-4o-mini", "odd": "a=b"},
    )
    assert printed["id"] == "r1"


def test_a_rule_update_may_set_the_priority_to_zero(
    run_json: RunJson, control_plane: ScriptedControlPlane
) -> None:
    run_json(*["rule", "update", "r1", "--priority", "0"])

    request = control_plane.only_request()
    assert list(request.update_mask.paths) == ["priority"]
    assert request.rule == Rule(id="r1")


def test_the_rules_of_a_router_are_a_list(
    run_json: RunJson, control_plane: ScriptedControlPlane
) -> None:
    control_plane.will_answer("GetRouter", Router(rules=[Rule(id="r1"), Rule(id="r2")]))

    assert [rule["id"] for rule in run_json("rule", "list", "acme/r1")] == ["r1", "r2"]


def test_a_price_is_exact(run_json: RunJson, control_plane: ScriptedControlPlane) -> None:
    run_json(
        *[
            "price",
            "set",
            "--provider",
            "openai",
            "--model",
            "gpt-4o-mini",
            "--input-usd-per-million",
            "0.15",
        ],
        *["--output-usd-per-million", "0.60", "--cached-input-usd-per-million", "0"],
        *[
            "--cache-write-usd-per-million",
            "0.1875",
            "--request-usd",
            "0.01",
            "--from",
            "2026-01-01",
        ],
    )

    price = control_plane.only_request().price
    assert (price.provider, price.model, price.free) == ("openai", "gpt-4o-mini", False)
    assert price.effective_from.ToDatetime(UTC) == datetime(2026, 1, 1, tzinfo=UTC)
    assert record_of(price.rates) == {
        "input_nanousd_per_million": 150_000_000,
        "output_nanousd_per_million": 600_000_000,
        "cache_read_nanousd_per_million": 0,
        "cache_write_5m_nanousd_per_million": 187_500_000,
        "cache_write_1h_nanousd_per_million": None,
        "request_nanousd": 10_000_000,
    }


def test_what_is_free_is_said_to_be_free(
    run_json: RunJson, control_plane: ScriptedControlPlane
) -> None:
    run_json(*["price", "set", "--provider", "mock", "--model", "free-*", "--free"])

    price = control_plane.only_request().price
    assert price.free
    assert not price.HasField("effective_from")


@pytest.mark.parametrize(
    ("flags", "subject"),
    [
        ("--user acme/alice", "user:acme/alice"),
        ("--org acme", "organization:acme"),
        ("--key acme/alice/laptop", "key:acme/alice/laptop"),
        ("--device 3k2v9q0m5t7x", "device:3k2v9q0m5t7x"),
        ("--ip 203.0.113.7", "ip:203.0.113.7"),
        ("--ip 2001:db8::1", "ip:2001:db8::1"),
        ("--endpoint chat", "endpoint:chat"),
        ("--model gpt-4o-mini", "model:gpt-4o-mini"),
        ("--global", "global"),
    ],
)
def test_limits_are_set_for_every_kind_of_subject(
    run_json: RunJson, control_plane: ScriptedControlPlane, flags: str, subject: str
) -> None:
    run_json(
        *f"limit set {flags} --requests-per-minute 1 --requests-per-day 2 --shadow".split(),
        *["--requests-per-month", "3", "--tokens-per-minute", "4", "--tokens-per-day", "5"],
        *["--tokens-per-month", "6", "--parallel", "7", "--daily-budget-usd", "8"],
        *["--monthly-budget-usd", "9", "--total-budget-usd", "none", "--soft"],
    )

    limits = control_plane.only_request().limits
    assert limits.subject == subject
    assert limits_of(limits) == {
        ("requests", "minute", 1, False),
        ("requests", "day", 2, False),
        ("requests", "month", 3, False),
        ("tokens", "minute", 4, False),
        ("tokens", "day", 5, False),
        ("tokens", "month", 6, False),
        ("parallel", None, 7, False),
        ("spend", "day", 8_000_000_000, False),
        ("spend", "month", 9_000_000_000, False),
        ("spend", "total", 0, True),
    }
    assert all(limit.shadow for limit in limits.limits)


def test_single_limits_are_deleted_by_the_names_of_their_flags(
    run_json: RunJson, control_plane: ScriptedControlPlane
) -> None:
    run_json(
        *[
            "limit",
            "delete",
            "--user",
            "acme/alice",
            "--only",
            "tokens-per-day",
            "--only",
            "parallel",
        ]
    )

    request = control_plane.only_request()
    assert request.subject == "user:acme/alice"
    assert limits_of(request) == {("tokens", "day", 0, False), ("parallel", None, 0, False)}


def test_an_administrators_token_is_shown_when_they_are_created(
    run_json: RunJson, control_plane: ScriptedControlPlane
) -> None:
    control_plane.will_answer(
        "CreateAdministrator",
        CreateAdministratorResponse(
            administrator=Administrator(name="ops-bot", role=Role.ROLE_OPERATOR), token="tka_x"
        ),
    )

    printed = run_json(*["admin", "create", "ops-bot", "--role", "operator"])

    assert control_plane.only_request().administrator.role == Role.ROLE_OPERATOR
    assert (printed["name"], printed["role"], printed["token"]) == ("ops-bot", "operator", "tka_x")


def test_a_node_is_compared_with_the_newest_position(
    run_json: RunJson, control_plane: ScriptedControlPlane
) -> None:
    control_plane.will_answer(
        "ListNodes",
        ListNodesResponse(
            current=Position(config_epoch="e", revision=9, digest=b"d"),
            nodes=[
                Node(node_id="n1", applied=Position(config_epoch="e", revision=9, digest=b"d")),
                Node(node_id="n2", applied=Position(config_epoch="e", revision=7, digest=b"c")),
                Node(node_id="n3", applied=Position(config_epoch="other", revision=7)),
            ],
        ),
    )

    nodes = run_json("node", "list")

    assert [(n["node_id"], n["lag_revisions"], n["in_step"]) for n in nodes] == [
        ("n1", 0, True),
        ("n2", 2, False),
        ("n3", None, False),
    ]


@pytest.mark.parametrize(
    ("command", "rpc"),
    [
        ("org delete acme", "DeleteOrganization"),
        ("user delete acme/alice", "DeleteUser"),
        ("key delete acme/alice/laptop", "DeleteApiKey"),
        ("provider delete acme/up", "DeleteProvider"),
        ("credential delete acme/up/main", "DeleteCredential"),
        ("router delete acme/r1", "DeleteRouter"),
    ],
)
def test_a_deletion_takes_what_depends_on_it_only_by_force(
    run_json: RunJson, control_plane: ScriptedControlPlane, command: str, rpc: str
) -> None:
    result = DeleteResult(revision=3, also_deleted=["user acme/alice"])
    control_plane.will_answer(rpc, result, result)

    printed = run_json(*command.split())
    run_json(*command.split(), "--force")

    assert printed == {"revision": 3, "also_deleted": ["user acme/alice"]}
    assert [request.force for request in control_plane.requests(rpc)] == [False, True]


@pytest.mark.parametrize("noun", ["org", "user", "key", "provider", "credential", "router"])
def test_a_noun_is_got_by_its_name(
    run_json: RunJson, control_plane: ScriptedControlPlane, noun: str
) -> None:
    assert isinstance(run_json(noun, "get", "a/b/c"), dict)
    assert control_plane.only_request().name == "a/b/c"


@pytest.mark.parametrize(
    "noun",
    [
        *("org", "user", "device", "key", "provider", "credential", "router", "limit", "tier"),
        *("price", "admin", "node", "audit"),
    ],
)
def test_a_list_without_items_is_an_empty_array(
    run_json: RunJson, control_plane: ScriptedControlPlane, noun: str
) -> None:
    assert run_json(noun, "list") == []


def test_a_list_holds_the_items_of_all_pages(
    run_json: RunJson, control_plane: ScriptedControlPlane
) -> None:
    control_plane.will_answer(
        "ListOrganizations",
        ListOrganizationsResponse(organizations=[Organization(name="a")], next_page_token="2"),
        ListOrganizationsResponse(next_page_token="3"),
        ListOrganizationsResponse(organizations=[Organization(name="b"), Organization(name="c")]),
    )

    assert [item["name"] for item in run_json("org", "list")] == ["a", "b", "c"]
    tokens = [request.page_token for request in control_plane.requests("ListOrganizations")]
    assert tokens == ["", "2", "3"]


def test_a_list_is_narrowed_by_its_flags(
    run_json: RunJson, control_plane: ScriptedControlPlane
) -> None:
    run_json(*["key", "list", "--org", "acme", "--user", "acme/alice"])

    request = control_plane.only_request()
    assert (request.organization, request.user) == ("acme", "acme/alice")


def test_json_and_yaml_show_the_same(run: Run, control_plane: ScriptedControlPlane) -> None:
    price = Price(provider="openai", model="x", free=True)
    control_plane.will_answer("GetPrice", price, price)

    as_json = run("price", "get", "p1", "-o", "json")
    as_yaml = run("price", "get", "p1", "--output", "yaml")

    assert yaml.safe_load(as_yaml.stdout) == json.loads(as_json.stdout)


def test_a_list_in_yaml_is_one_document(run: Run, control_plane: ScriptedControlPlane) -> None:
    control_plane.will_answer(
        "ListOrganizations",
        ListOrganizationsResponse(organizations=[Organization(name="a"), Organization(name="b")]),
    )

    full, empty = run(*["org", "list", "-o", "yaml"]), run(*["org", "list", "-o", "yaml"])

    assert [item["name"] for item in yaml.safe_load(full.stdout)] == ["a", "b"]
    assert yaml.safe_load(empty.stdout) == []
