"""Which provider serves a call: caller → router → rules → attempt."""

from collections.abc import Sequence
from dataclasses import dataclass

from dataplane.domain.calls import Call, Dialect
from dataplane.domain.patterns import matches
from dataplane.domain.prices import Price
from dataplane.domain.principals import Principal
from dataplane.domain.providers import Credential, Provider, Router, Rule
from dataplane.domain.refusals import Reason, Refusal
from dataplane.domain.snapshot import Snapshot


@dataclass(frozen=True, slots=True)
class Attempt:
    """One try: this model at this provider, at this price.

    `model` is the name that the provider is asked for; `credential` is None where the provider
    wants none.
    """

    router: Router
    rule: Rule
    provider: Provider
    model: str
    base_url: str
    credential: Credential | None
    price: Price


def route(snapshot: Snapshot, principal: Principal, call: Call, draw: int, now_ms: int) -> Attempt:
    """Return the attempt that serves `call`.

    Rules are tried by priority; among those of the lowest usable number, `draw` (any
    non-negative integer) chooses by weight.

    Raises:
        Refusal: MODEL_NOT_ALLOWED, MODEL_NOT_FOUND (no rule takes the model), NO_ROUTE (rules
            take it but no provider can serve it in this dialect), MODEL_NOT_PRICED.
    """
    model = call.model
    if not may_use(principal, model):
        raise Refusal(
            Reason.MODEL_NOT_ALLOWED, "This credential may not use this model.", param="model"
        )
    router = snapshot.routers.get(principal.router_id)
    if router is None or not router.rules:
        raise _no_route()
    taking = [rule for rule in router.rules if takes(rule, model)]
    if not taking:
        raise Refusal(Reason.MODEL_NOT_FOUND, "There is no such model.", param="model")
    usable = [rule for rule in taking if is_usable(rule, call.dialect)]
    if not usable:
        raise _no_route()
    rule = _draw([rule for rule in usable if rule.priority == usable[0].priority], draw)
    return _attempt(snapshot, router, rule, call, now_ms)


def may_use(principal: Principal, model: str) -> bool:
    """Return whether the caller's list of models has `model`; no list allows all."""
    return not principal.allowed_models or any(
        matches(each, model) for each in principal.allowed_models
    )


def takes(rule: Rule, model: str) -> bool:
    """Return whether `rule` is for `model`, by pattern or alias.

    A rule with a condition takes nothing: expressions are not known to this data plane.
    """
    if rule.condition:
        return False
    return model in rule.aliases or any(matches(each, model) for each in rule.models)


def is_usable(rule: Rule, dialect: Dialect) -> bool:
    """Return whether the rule's provider speaks `dialect` and has a secret if it needs one."""
    provider = rule.provider
    return dialect in provider.endpoints and (
        not provider.credentials or _credential(provider) is not None
    )


def _attempt(snapshot: Snapshot, router: Router, rule: Rule, call: Call, now_ms: int) -> Attempt:
    provider = rule.provider
    model = rule.aliases.get(call.model, call.model)
    price = snapshot.prices.find((provider.name, provider.kind), model, now_ms)
    if price is None:
        raise Refusal(
            Reason.MODEL_NOT_PRICED,
            "This model has no price, so no budget could hold; an administrator can set one.",
            param="model",
        )
    return Attempt(
        router=router,
        rule=rule,
        provider=provider,
        model=model,
        base_url=provider.endpoints[call.dialect],
        credential=_credential(provider),
        price=price,
    )


def _credential(provider: Provider) -> Credential | None:
    return next((each for each in provider.credentials if each.secret is not None), None)


def _draw(rules: Sequence[Rule], draw: int) -> Rule:
    if len(rules) == 1:
        return rules[0]
    point = draw % sum(rule.weight for rule in rules)
    for rule in rules:
        point -= rule.weight
        if point < 0:
            return rule
    raise AssertionError("the weights of the rules add up to more than any point")


def _no_route() -> Refusal:
    return Refusal(
        Reason.NO_ROUTE, "No provider of this caller's router can serve this model in this API."
    )
