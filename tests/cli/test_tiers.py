"""Tiers: what their commands ask of the control plane, and which users, keys and devices have them."""

from collections.abc import Callable
from typing import Any

import grpc
import pytest
from tollkeeper.admin.v1.api_key_service_pb2 import ApiKey
from tollkeeper.admin.v1.changes_pb2 import DeleteResult
from tollkeeper.admin.v1.tier_service_pb2 import ListTiersResponse, Tier
from tollkeeper.admin.v1.user_service_pb2 import User
from tollkeeper.common.v1.limits_pb2 import Limit, LimitUnit, LimitWindow

from controlplane.cli.layers import LAYERS, LayerName
from controlplane.cli.plain import record_of
from controlplane.cli.tier_layers import Counted
from tests.cli.conftest import Run
from tests.cli.scripted import Refusal, ScriptedControlPlane

RunJson = Callable[..., Any]


def requests_per(window: str, capacity: int) -> Limit:
    return Limit(
        unit=LimitUnit.LIMIT_UNIT_REQUESTS,
        window=LimitWindow.Value(f"LIMIT_WINDOW_{window}"),
        capacity=capacity,
    )


def tokens_a_day(capacity: int) -> Limit:
    return Limit(
        unit=LimitUnit.LIMIT_UNIT_TOKENS,
        window=LimitWindow.LIMIT_WINDOW_DAY,
        capacity=capacity,
    )


def free_tier() -> Tier:
    return Tier(
        name="free",
        device_limits=[requests_per("DAY", 100), requests_per("MINUTE", 9)],
        user_limits=[requests_per("DAY", 1000), tokens_a_day(5000)],
        credential_limits=[requests_per("MINUTE", 5)],
        etag="e1",
        revision=4,
    )


def layers_of(limits: Any) -> set[tuple[str | None, str | None, int, bool]]:
    """Return layers as unit, window, capacity and whether it is unlimited."""
    rows = [record_of(limit) for limit in limits]
    return {(r["unit"], r["window"], r["capacity"], r["unlimited"]) for r in rows}  # type: ignore[misc]  # plain values


def test_a_tier_is_created_with_layers_of_four_kinds(
    run_json: RunJson, control_plane: ScriptedControlPlane
) -> None:
    control_plane.will_answer("CreateTier", free_tier())

    printed = run_json(
        *["tier", "create", "free", "--device-requests-per-day", "100"],
        *["--ip-requests-per-month", "7", "--user-monthly-budget-usd", "0.05"],
        *["--user-tokens-per-day", "5000", "--credential-parallel", "2", "--soft", "--shadow"],
    )

    tier = control_plane.only_request().tier
    assert tier.name == "free"
    assert layers_of(tier.device_limits) == {("requests", "day", 100, False)}
    assert layers_of(tier.ip_limits) == {("requests", "month", 7, False)}
    assert layers_of(tier.user_limits) == {
        ("spend", "month", 50_000_000, False),
        ("tokens", "day", 5000, False),
    }
    assert layers_of(tier.credential_limits) == {("parallel", None, 2, False)}
    assert {record_of(limit)["unit"]: limit.soft for limit in tier.user_limits} == {
        "spend": True,
        "tokens": False,
    }
    assert all(limit.shadow for limit in tier.user_limits)
    assert (printed["name"], printed["revision"]) == ("free", 4)


@pytest.mark.parametrize("counted", Counted)
@pytest.mark.parametrize("name", LayerName)
def test_every_layer_can_be_set_for_everybody_that_a_tier_counts(
    run_json: RunJson, control_plane: ScriptedControlPlane, counted: Counted, name: LayerName
) -> None:
    flag = "requests-per-second" if name is LayerName.REQUESTS_RATE else name
    run_json("tier", "create", "trial", f"--{counted}-{flag}", "3")

    tier = control_plane.only_request().tier
    (limit,) = getattr(tier, counted.field)
    layer = LAYERS[name]
    assert limit.unit == LimitUnit.Value(f"LIMIT_UNIT_{layer.unit}")
    assert limit.window == LimitWindow.Value(f"LIMIT_WINDOW_{layer.window}")
    assert limit.capacity == (3_000_000_000 if layer.unit == "SPEND" else 3)
    assert sum(len(getattr(tier, each.field)) for each in Counted) == 1


def test_a_tier_says_that_there_is_no_limit_by_having_none(
    run_json: RunJson, control_plane: ScriptedControlPlane
) -> None:
    run_json("tier", "create", "trial", "--device-requests-per-day", "none")

    assert control_plane.only_request().tier == Tier(name="trial")


def test_an_update_merges_by_unit_and_window_and_sends_the_etag(
    run_json: RunJson, control_plane: ScriptedControlPlane
) -> None:
    control_plane.will_answer("GetTier", free_tier())

    run_json(
        *["tier", "update", "free", "--device-requests-per-day", "20"],
        *["--device-daily-tokens", "0", "--credential-requests-per-minute", "none"],
    )

    (request,) = control_plane.requests("UpdateTier")
    assert [each.name for each in control_plane.requests("GetTier")] == ["free"]
    assert sorted(request.update_mask.paths) == ["credential_limits", "device_limits"]
    assert (request.tier.name, request.tier.etag) == ("free", "e1")
    assert layers_of(request.tier.device_limits) == {
        ("requests", "day", 20, False),
        ("requests", "minute", 9, False),
        ("tokens", "day", 0, False),
    }
    assert layers_of(request.tier.credential_limits) == set()
    assert layers_of(request.tier.user_limits) == layers_of(free_tier().user_limits)


def test_what_a_tier_does_not_have_can_be_taken_away(
    run_json: RunJson, control_plane: ScriptedControlPlane
) -> None:
    control_plane.will_answer("GetTier", free_tier())

    run_json("tier", "update", "free", "--ip-parallel", "none")

    (request,) = control_plane.requests("UpdateTier")
    assert list(request.update_mask.paths) == ["ip_limits"]
    assert layers_of(request.tier.ip_limits) == set()


def test_a_tier_that_somebody_else_changed_meanwhile_is_left_as_it_is(
    run: Run, control_plane: ScriptedControlPlane
) -> None:
    control_plane.will_answer("GetTier", free_tier())
    control_plane.will_answer(
        "UpdateTier", Refusal(grpc.StatusCode.ABORTED, "the tier has changed", "CONFLICT")
    )

    result = run("tier", "update", "free", "--ip-parallel", "1")

    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == "refused: conflict: the tier has changed\n"
    assert len(control_plane.requests("UpdateTier")) == 1


def test_a_table_of_tiers_has_a_row_for_each_limit_and_says_whom_it_counts(
    run: Run, control_plane: ScriptedControlPlane
) -> None:
    budget = Limit(
        unit=LimitUnit.LIMIT_UNIT_SPEND, window=LimitWindow.LIMIT_WINDOW_MONTH, capacity=50_000_000
    )
    tiers = [
        Tier(
            name="free",
            device_limits=[requests_per("DAY", 100)],
            ip_limits=[requests_per("DAY", 500)],
            user_limits=[budget],
            credential_limits=[requests_per("MINUTE", 5)],
        ),
        Tier(name="open"),
    ]
    control_plane.will_answer("ListTiers", ListTiersResponse(tiers=tiers))

    heading, _, *rows = (" ".join(line.split()) for line in run("tier", "list").stdout.splitlines())

    assert heading == "tier counts unit window capacity soft shadow"
    assert rows == [
        "free each device requests day 100 no no",
        "free each address requests day 500 no no",
        "free each user spend month 0.05 USD no no",
        "free each key or device requests minute 5 no no",
        "open nobody - - - - -",
    ]


def test_tiers_in_json_are_whole(run_json: RunJson, control_plane: ScriptedControlPlane) -> None:
    control_plane.will_answer(
        "ListTiers",
        ListTiersResponse(tiers=[free_tier()], next_page_token="2"),
        ListTiersResponse(tiers=[Tier(name="paid")]),
    )
    control_plane.will_answer("GetTier", free_tier())

    free, paid = run_json("tier", "list")

    assert (free["name"], paid["name"]) == ("free", "paid")
    assert [limit["capacity"] for limit in free["device_limits"]] == [100, 9]
    assert run_json("tier", "get", "free") == free


def test_a_tier_is_deleted_by_its_name(
    run_json: RunJson, control_plane: ScriptedControlPlane
) -> None:
    control_plane.will_answer("DeleteTier", DeleteResult(revision=3))

    assert run_json("tier", "delete", "trial") == {"revision": 3, "also_deleted": []}
    assert control_plane.only_request().name == "trial"


def test_limits_of_a_tier_are_those_of_each_of_its_users(
    run_json: RunJson, control_plane: ScriptedControlPlane
) -> None:
    changed = free_tier()
    changed.user_limits[0].capacity = 20
    control_plane.will_answer("GetTier", free_tier())
    control_plane.will_answer("UpdateTier", changed)

    printed = run_json("limit", "set", "--tier", "free", "--requests-per-day", "20")

    (request,) = control_plane.requests("UpdateTier")
    assert list(request.update_mask.paths) == ["user_limits"]
    assert request.tier.etag == "e1"
    assert layers_of(request.tier.user_limits) == {
        ("requests", "day", 20, False),
        ("tokens", "day", 5000, False),
    }
    assert (printed["subject"], printed["revision"]) == ("tier:free", 4)
    assert [limit["capacity"] for limit in printed["limits"]] == [20, 5000]
    assert control_plane.requests("SetLimits") == []


def test_limits_of_a_tier_are_shown_as_those_of_other_subjects(
    run_json: RunJson, run: Run, control_plane: ScriptedControlPlane
) -> None:
    control_plane.will_answer("GetTier", free_tier(), free_tier())

    printed = run_json("limit", "get", "--tier", "free")
    table = run("limit", "get", "--tier", "free").stdout

    assert [limit["unit"] for limit in printed["limits"]] == ["requests", "tokens"]
    assert printed["updated_at"] is None
    assert table.count("tier:free") == 2


@pytest.mark.parametrize(
    ("flags", "left"),
    [([], set()), (["--only", "requests-per-day"], {("tokens", "day", 5000, False)})],
)
def test_limits_of_a_tier_are_removed_one_by_one_or_all(
    run_json: RunJson,
    control_plane: ScriptedControlPlane,
    flags: list[str],
    left: set[tuple[str, str, int, bool]],
) -> None:
    control_plane.will_answer("GetTier", free_tier())
    control_plane.will_answer("UpdateTier", Tier(revision=9))

    printed = run_json("limit", "delete", "--tier", "free", *flags)

    (request,) = control_plane.requests("UpdateTier")
    assert list(request.update_mask.paths) == ["user_limits"]
    assert layers_of(request.tier.user_limits) == left
    assert layers_of(request.tier.device_limits) == layers_of(free_tier().device_limits)
    assert printed == {"revision": 9, "also_deleted": []}


@pytest.mark.parametrize(
    ("flags", "tier"), [("--tier gold", "gold"), ("--tier none", ""), ("", "")]
)
def test_users_and_keys_are_created_with_any_tier_or_none(
    run_json: RunJson, control_plane: ScriptedControlPlane, flags: str, tier: str
) -> None:
    run_json("user", "create", "acme/alice", *flags.split())
    run_json("key", "create", "acme/alice/laptop", *flags.split())

    (user,) = control_plane.requests("CreateUser")
    (key,) = control_plane.requests("CreateApiKey")
    assert user.user == User(name="acme/alice", tier=tier)
    assert key.api_key == ApiKey(name="acme/alice/laptop", router="default", tier=tier)


@pytest.mark.parametrize(("given", "tier"), [("gold", "gold"), ("none", ""), ("", "")])
def test_users_and_keys_get_another_tier_or_lose_theirs(
    run_json: RunJson, control_plane: ScriptedControlPlane, given: str, tier: str
) -> None:
    run_json("user", "update", "acme/alice", "--tier", given)
    run_json("key", "update", "acme/alice/laptop", "--tier", given)

    (user,) = control_plane.requests("UpdateUser")
    (key,) = control_plane.requests("UpdateApiKey")
    assert (list(user.update_mask.paths), user.user.tier) == (["tier"], tier)
    assert (list(key.update_mask.paths), key.api_key.tier) == (["tier"], tier)
