import json
from datetime import UTC, datetime, timedelta

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given
from hypothesis import strategies as st
from tollkeeper.admin.v1 import node_service_pb2, organization_service_pb2, price_service_pb2
from tollkeeper.admin.v1.router_service_pb2 import Router, Rule
from tollkeeper.common.v1.errors_pb2 import ErrorReason
from tollkeeper.common.v1.limits_pb2 import Limit, LimitUnit
from tollkeeper.config.v1.resources_pb2 import LimitsUnavailablePolicy
from tollkeeper.usage.v1.usage_service_pb2 import UsageRecord

from controlplane.cli.plain import enum_word, iso_instant, record_of


@given(st.integers(min_value=-(2**63), max_value=2**63 - 1))
def test_a_64_bit_integer_is_a_json_number(number: int) -> None:
    record = json.loads(json.dumps(record_of(UsageRecord(cost_nanousd=number))))

    assert record["cost_nanousd"] == number
    assert type(record["cost_nanousd"]) is int


def test_every_field_is_present_under_its_snake_case_name() -> None:
    record = record_of(UsageRecord())

    assert list(record) == [field.name for field in UsageRecord.DESCRIPTOR.fields]


def test_what_is_absent_is_null_and_not_zero() -> None:
    record = record_of(price_service_pb2.Price())
    rates = record_of(price_service_pb2.Price(free=True).rates)

    assert record["rates"] is None
    assert record["effective_from"] is None
    assert rates["cache_read_nanousd_per_million"] is None
    assert rates["input_nanousd_per_million"] == 0


def test_enums_are_lower_case_words_without_their_prefix() -> None:
    organization = organization_service_pb2.Organization(
        on_limits_unavailable=LimitsUnavailablePolicy.LIMITS_UNAVAILABLE_POLICY_CLOSED
    )

    assert record_of(organization)["on_limits_unavailable"] == "closed"
    assert record_of(node_service_pb2.Node())["not_ready"] is None
    assert enum_word(ErrorReason.DESCRIPTOR, ErrorReason.ERROR_REASON_NO_ROUTE) == "no_route"


def test_an_enum_value_of_a_newer_control_plane_is_shown_by_its_number() -> None:
    limit = Limit.FromString(b"\x08\x63")

    assert record_of(limit)["unit"] == "99"


@pytest.mark.parametrize("unit", LimitUnit.values())
def test_every_unit_has_a_word(unit: int) -> None:
    assert (enum_word(LimitUnit.DESCRIPTOR, unit) is None) == (unit == 0)


def test_maps_and_lists_and_messages_nest() -> None:
    rule = Rule(models=["*"], aliases={"b": "2", "a": "1"})

    record = record_of(Router(rules=[rule]))

    assert isinstance(record["rules"], list)
    assert record["rules"][0] == {
        **record_of(rule),
        "aliases": {"a": "1", "b": "2"},
        "models": ["*"],
    }


def test_bytes_are_hexadecimal() -> None:
    node = node_service_pb2.Node()
    node.applied.digest = b"\x00\xff"

    applied = record_of(node)["applied"]

    assert isinstance(applied, dict)
    assert applied["digest"] == "00ff"


@given(
    st.datetimes(min_value=datetime(1, 1, 1), max_value=datetime(9999, 12, 31)).map(  # noqa: DTZ001 - hypothesis wants naive bounds
        lambda naive: naive.replace(tzinfo=UTC)
    )
)
def test_an_instant_is_iso_8601_in_utc(instant: datetime) -> None:
    timestamp = Timestamp()
    timestamp.FromDatetime(instant)

    shown = iso_instant(timestamp)

    assert shown.endswith("Z")
    assert datetime.fromisoformat(shown) == instant
    assert datetime.fromisoformat(shown).utcoffset() == timedelta(0)
