"""Keys of counters: what they say can be read back, and no two counters share one."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataplane.domain.counters import CounterName
from dataplane.domain.limiting import Layer, SubjectKind, Unit, Window, plan_of
from dataplane.limits import counters
from dataplane.limits.counters import Binder, Keyspace, counter_code, layer_kind, layer_name
from tests.limits.plans import budget, rate

KEYSPACE = Keyspace("g")
_PERIODS = {Window.DAY: "20261121", Window.MONTH: "202611", Window.TOTAL: "total"}
_WINDOWS = {
    Unit.REQUESTS: (Window.RATE, Window.MINUTE, *_PERIODS),
    Unit.TOKENS: (Window.MINUTE, *_PERIODS),
    Unit.SPEND: tuple(_PERIODS),
    Unit.PARALLEL: (Window.NONE,),
}
SUBJECT_IDS = st.one_of(
    st.text("ab:.01", max_size=8),
    st.sampled_from(["", "gpt-4.1", "ft:gpt-4o:acme:20261121", "203.0.113.7", "2001:db8:0:1::/64", "total"]),
)  # fmt: skip


@st.composite
def names(draw: st.DrawFn) -> CounterName:
    unit = draw(st.sampled_from(Unit))
    window = draw(st.sampled_from(_WINDOWS[unit]))
    return CounterName(
        draw(st.sampled_from(SubjectKind)),
        draw(SUBJECT_IDS),
        unit,
        window,
        _PERIODS.get(window, ""),
        draw(st.integers(0, 30)),
    )


@given(names())
def test_a_key_says_which_counter_it_is(name: CounterName) -> None:
    assert KEYSPACE.parse_counter(KEYSPACE.counter_key(name)) == name


@given(names())
def test_a_layer_and_the_name_of_its_counter_have_one_key(name: CounterName) -> None:
    layer = Layer(
        name.subject_kind,
        name.subject_id,
        name.unit,
        name.window,
        5,
        reset_generation=name.reset_generation,
        every_ms=1000 if name.window is Window.RATE else 0,
    )

    assert KEYSPACE.counter(layer, name.period_id) == KEYSPACE.counter_key(name)
    assert (layer_kind(name), layer_name(name)) == (layer.kind, layer.name)


def test_no_two_layers_are_written_alike() -> None:
    layers = [
        (subject, unit, window)
        for subject in SubjectKind
        for unit in Unit
        for window in _WINDOWS[unit]
    ]

    keys = {
        each: KEYSPACE.counter_key(CounterName(each[0], "x", each[1], each[2], "")).split(":")[4]
        for each in layers
    }

    assert len(set(keys.values())) == len(layers) == 8 * 13
    assert {len(letters) for letters in keys.values()} == {3}


@pytest.mark.parametrize(
    ("name", "key"),
    [
        (CounterName(SubjectKind.USER, "u_1", Unit.REQUESTS, Window.RATE, ""), "g:urr:u_1"),
        (CounterName(SubjectKind.USER, "u_1", Unit.TOKENS, Window.MINUTE, ""), "w:utm:u_1"),
        (CounterName(SubjectKind.GLOBAL, "", Unit.REQUESTS, Window.DAY, "20261121", 2), "p:grd::20261121.2"),
        (CounterName(SubjectKind.ORGANIZATION, "o_1", Unit.SPEND, Window.MONTH, "202611"), "s:oso:o_1:202611"),
        (CounterName(SubjectKind.KEY, "k_1", Unit.SPEND, Window.TOTAL, "total"), "s:kst:k_1:total"),
        (CounterName(SubjectKind.DEVICE, "d_1", Unit.PARALLEL, Window.NONE, "", 1), "c:dpn:d_1.1"),
        (CounterName(SubjectKind.IP, "2001:db8::/64", Unit.REQUESTS, Window.MINUTE, ""), "w:irm:2001:db8::/64"),
        (CounterName(SubjectKind.ENDPOINT, "chat", Unit.REQUESTS, Window.MINUTE, ""), "w:erm:chat"),
        (CounterName(SubjectKind.MODEL, "gpt-4.1", Unit.REQUESTS, Window.MINUTE, ""), "w:mrm:gpt-4.1.0"),
    ],
)  # fmt: skip
def test_keys_stay_what_they_are_as_long_as_the_layout_has_its_version(
    name: CounterName, key: str
) -> None:
    assert KEYSPACE.counter_key(name) == f"tk:1:{{g}}:{key}"
    assert KEYSPACE.parse_counter(f"tk:1:{{g}}:{key}") == name


def test_a_reset_model_does_not_share_the_window_of_its_next_version() -> None:
    reset = CounterName(SubjectKind.MODEL, "gpt-4", Unit.REQUESTS, Window.MINUTE, "", 1)
    other = CounterName(SubjectKind.MODEL, "gpt-4.1", Unit.REQUESTS, Window.MINUTE, "")

    assert KEYSPACE.counter_key(reset) != KEYSPACE.counter_key(other)


@pytest.mark.parametrize(
    "key",
    [
        "leases",
        "r:0190-1",
        "g:auth_failures:203.0.113.7",
        "g:registrations:198.51.100.7",
        "p:urd:u_1",
        "p:urd:u_1:2026",
        "p:urd:u_1:20261121.0",
        "s:urd:u_1:20261121",
        "p:user_requests_per_day:u_1:20261121",
        "p:uRd:u_1:20261121",
        "p:rud:u_1:20261121",
        "c:upd:u_1:20261121",
        "w:urm",
    ],
)
def test_what_is_no_counter_has_no_name(key: str) -> None:
    assert KEYSPACE.parse_counter(f"{KEYSPACE.prefix}{key}") is None


def test_a_counter_of_another_key_space_has_no_name_here() -> None:
    name = CounterName(SubjectKind.USER, "u_1", Unit.SPEND, Window.DAY, "20261121")

    assert KEYSPACE.parse_counter(Keyspace("other").counter_key(name)) is None
    assert counter_code(name) == counters.SPEND


def test_a_packed_plan_has_the_same_number_of_values_for_every_layer() -> None:
    plan = plan_of([rate(7, 60_000, burst=3), budget(90, is_hard=False)])

    bound = Binder(KEYSPACE).bind(plan, 0)

    assert bound.layers[0] == (counters.RATE, 0, 7, 0, 8_571_429, 25_714_287, 0)
    assert bound.layers[1][:4] == (counters.SOFT_SPEND, 1, 90, 0)
    assert {len(each) for each in bound.layers} == {counters.LAYER_FIELDS}
