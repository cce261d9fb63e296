from collections import Counter
from typing import Any

import pytest

from dataplane.domain.calls import Dialect
from dataplane.domain.catalogue import models_for
from dataplane.domain.prices import PriceBook
from dataplane.domain.refusals import Reason, Refusal
from dataplane.domain.routing import Attempt, route
from dataplane.domain.snapshot import Snapshot
from tests.unit.dataplane.configuration import (
    api_key,
    call,
    credential,
    price,
    principal,
    provider,
    rule,
    snapshot,
)


def routed(config: Snapshot, model: str = "m", draw: int = 0, **changes: Any) -> Attempt:
    key = next(iter(config.keys_by_sha256.values()))
    return route(config, key.principal, call(model, **changes), draw, now_ms=1000)


def refused(config: Snapshot, model: str = "m", **changes: Any) -> Reason:
    with pytest.raises(Refusal) as refusal:
        routed(config, model, **changes)
    return refusal.value.reason


def test_the_first_priority_that_can_serve_does() -> None:
    config = snapshot(
        rule("other model", models=("x-*",)),
        rule("other dialect", provider=provider(endpoints={Dialect.ANTHROPIC: "http://a"})),
        rule("no secret", provider=provider(credentials=(credential(None),))),
        rule("condition", condition="true"),
        rule("chosen", priority=2),
        rule("later", priority=3),
    )

    assert routed(config).rule.rule_id == "chosen"


def test_weights_share_the_calls_of_one_priority() -> None:
    rules = [rule("a", weight=1), rule("b", weight=3), rule("c", weight=6), rule("d", priority=2)]
    config = snapshot(*rules)

    counts = Counter(routed(config, draw=draw).rule.rule_id for draw in range(1000))

    assert counts == {"a": 100, "b": 300, "c": 600}


def test_an_alias_names_the_providers_model_and_is_priced_as_that() -> None:
    prices = PriceBook([price("big-1", input=7), price("fast", input=9)])
    config = snapshot(rule(models=(), aliases={"fast": "big-1"}), prices=prices)

    attempt = routed(config, "fast")

    assert (attempt.model, attempt.price.input) == ("big-1", 7)
    assert refused(config, "big-1") is Reason.MODEL_NOT_FOUND


def test_each_dialect_has_its_own_endpoint() -> None:
    config = snapshot(rule())

    assert routed(config).base_url == "http://p/v1"
    assert routed(config, dialect=Dialect.ANTHROPIC).base_url == "http://p"
    assert refused(config, dialect=Dialect.GOOGLE) is Reason.NO_ROUTE


def test_the_first_credential_with_a_secret_is_used() -> None:
    usable = credential()
    config = snapshot(rule(provider=provider(credentials=(credential(None), usable))))

    assert routed(config).credential is usable
    assert routed(snapshot(rule())).credential is None


def test_refusals_say_what_is_missing() -> None:
    assert refused(snapshot()) is Reason.NO_ROUTE
    assert refused(snapshot(rule(), key=api_key(principal(router_id="gone")))) is Reason.NO_ROUTE
    assert refused(snapshot(rule(models=("x",)))) is Reason.MODEL_NOT_FOUND
    assert refused(snapshot(rule(), prices=PriceBook([]))) is Reason.MODEL_NOT_PRICED
    only = snapshot(rule(), key=api_key(principal(allowed_models=("gpt-*", "o1"))))
    assert refused(only, "m") is Reason.MODEL_NOT_ALLOWED
    assert routed(only, "gpt-5").model == "gpt-5"
    assert routed(only, "o1").model == "o1"


def test_the_catalogue_lists_only_what_would_be_served() -> None:
    key = api_key(principal(allowed_models=("a*", "fast")))
    config = snapshot(
        rule(models=("a1", "b1", "z*"), aliases={"fast": "a1", "slow": "b1"}),
        rule(condition="x", models=("a2",)),
        rule(models=("a3",), provider=provider(credentials=(credential(None),))),
        rule(models=("a4", "a5")),
        prices=PriceBook([price("a1"), price("a3"), price("a4", effective_from_ms=2000)]),
        key=key,
    )

    listed = models_for(config, key.principal, now_ms=1000)

    assert listed == ("a1", "fast")
    for name in listed:
        assert routed(config, name)
