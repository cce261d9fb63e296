import pytest
from tollkeeper.admin.v1 import provider_service_pb2 as pb
from tollkeeper.config.v1 import resources_pb2

from controlplane.domain.errors import InvalidError
from controlplane.domain.pricing import Rates, check_price
from controlplane.domain.routing import (
    PROVIDER_KINDS,
    Dialect,
    Endpoint,
    check_rule,
    endpoints_of,
    may_use,
)


def given(*urls: str) -> list[Endpoint]:
    return [Endpoint(dialect, url) for dialect, url in zip(Dialect, urls, strict=False)]


@pytest.mark.parametrize(
    "url",
    [
        "",
        "api.openai.com/v1",
        "ftp://host/v1",
        "https://",
        "https:///v1",
        "https://user:pass@host/v1",
        "https://host/v1?key=1",
        "https://host/v1?",
        "https://host/v1#x",
        "https://host:notaport/",
        "https://host:99999/",
        "https://ho st/",
        "https://höst/",
        "https://host/\n",
        "https://host/" + "x" * 2048,
    ],
)
def test_an_address_that_cannot_be_called_is_refused(url: str) -> None:
    with pytest.raises(InvalidError) as caught:
        endpoints_of("openai", given(url), field="endpoints")

    assert caught.value.field == "endpoints[0].base_url"


@pytest.mark.parametrize("url", ["http://127.0.0.1:8080", "https://[::1]/v1", "https://a.b/c/d"])
def test_a_final_slash_is_dropped(url: str) -> None:
    for written in (url, f"{url}/"):
        assert endpoints_of("http", given(written), field="x") == tuple(given(url))


def test_a_dialect_is_spoken_in_one_place() -> None:
    twice = [Endpoint(Dialect.OPENAI, "https://a"), Endpoint(Dialect.OPENAI, "https://b")]

    with pytest.raises(InvalidError, match="second"):
        endpoints_of("openai", twice, field="endpoints")


@pytest.mark.parametrize("kind", sorted(PROVIDER_KINDS))
def test_a_kind_has_public_endpoints_or_asks_for_them(kind: str) -> None:
    if kind in {"azure_openai", "openai_compatible", "mock", "http"}:
        with pytest.raises(InvalidError, match="base URL"):
            endpoints_of(kind, [], field="x")
    else:
        public = endpoints_of(kind, [], field="x")
        assert public == endpoints_of(kind, public, field="x")


def test_kinds_and_dialects_are_those_of_the_contract() -> None:
    dialects = {n.removeprefix("DIALECT_"): v for n, v in resources_pb2.Dialect.items() if v}
    rules = str(pb.Provider.DESCRIPTOR.fields_by_name["kind"].GetOptions())

    assert {dialect.name: dialect.value for dialect in Dialect} == dialects
    assert all(f'"{kind}"' in rules for kind in PROVIDER_KINDS)
    assert rules.count("in:") == len(PROVIDER_KINDS)


@pytest.mark.parametrize(
    ("aliases", "condition"), [({"": "x"}, ""), ({"x": ""}, ""), ({"x" * 201: "y"}, ""), ({}, "1")]
)
def test_a_rule_that_cannot_be_followed_is_refused(aliases: dict[str, str], condition: str) -> None:
    with pytest.raises(InvalidError):
        check_rule(condition, aliases)


def test_what_is_shared_uses_only_what_is_shared() -> None:
    assert may_use(None, None)
    assert may_use(None, "acme")
    assert may_use("acme", "acme")
    assert not may_use("acme", "other")
    assert not may_use("acme", None)


@pytest.mark.parametrize(
    "rates",
    [
        Rates(input_nanousd_per_million=1),
        Rates(output_nanousd_per_million=1),
        Rates(request_nanousd=1),
    ],
)
def test_a_price_costs_something_or_is_free_by_word(rates: Rates) -> None:
    check_price("gpt-4o*", rates, free=False)
    check_price("*", Rates(), free=True)
    for wrong, free in (
        (rates, True),
        (Rates(), False),
        (Rates(cache_read_nanousd_per_million=1), True),
    ):
        with pytest.raises(InvalidError):
            check_price("gpt-4o", wrong, free=free)


@pytest.mark.parametrize("model", ["a*b", "**", "*x"])
def test_a_pattern_ends_with_its_star(model: str) -> None:
    with pytest.raises(InvalidError, match="ends with it"):
        check_price(model, Rates(request_nanousd=1), free=False)
