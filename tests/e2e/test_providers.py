"""A provider of one's own: created by the command line, called with its credential, paid at its price."""

import httpx

from tests.e2e.customers import ORGANIZATION, new_customer
from tests.e2e.stack import Stack
from tests.e2e.upstream import recording_upstream
from tests.e2e.waiting import eventually

OPENAI_SECRET = "sk-canary-openai-6a5f0f7d0b1c4e5f9a27"
ANTHROPIC_SECRET = "sk-ant-canary-anthropic-93b2cc60f1d84d7e"
PROPAGATION_S = 1.0
MESSAGES = [{"role": "user", "content": "hello"}]


def test_a_provider_with_credential_router_rule_and_price_answers_and_gets_its_secret_as_it_wants_it(
    stack: Stack, http: httpx.Client
) -> None:
    customer = new_customer(stack)
    router = f"{ORGANIZATION}/own"
    with recording_upstream() as upstream:
        stack.tollkeeper("router", "create", router)
        for number, (kind, base_url, secret, models, price_in, price_out) in enumerate(
            (
                ("openai", f"{upstream.url}/v1", OPENAI_SECRET, "gpt-*", "0.15", "0.60"),
                ("anthropic", upstream.url, ANTHROPIC_SECRET, "claude-*", "3", "15"),
            ),
            start=1,
        ):
            provider = f"{ORGANIZATION}/own-{kind}"
            stack.tollkeeper("provider", "create", provider, "--kind", kind, "--base-url", base_url)
            stack.tollkeeper(
                "credential", "create", f"{provider}/main", "--secret-stdin", stdin=secret
            )
            stack.tollkeeper(
                *("rule", "create", router, "--priority", str(number)),
                *("--provider", provider, "--models", models),
            )
            stack.tollkeeper(
                *("price", "set", "--provider", provider, "--model", models),
                *("--input-usd-per-million", price_in, "--output-usd-per-million", price_out),
            )
        stack.tollkeeper("key", "update", customer.key, "--router", router)
        headers = {"authorization": f"Bearer {customer.api_key}"}
        openai_call = {"model": "gpt-4o-mini", "messages": MESSAGES, "max_tokens": 50}
        anthropic_call = {"model": "claude-sonnet-4-5", "messages": MESSAGES, "max_tokens": 50}
        for base_url in stack.base_urls:

            def answers(url: str = f"{base_url}/v1/chat/completions") -> bool:
                return http.post(url, json=openai_call, headers=headers).status_code == 200

            # The last of the changes may take its second.
            eventually(answers, PROPAGATION_S)
            answer = http.post(f"{base_url}/v1/messages", json=anthropic_call, headers=headers)
            assert answer.status_code == 200, answer.text
            assert answer.json()["content"][0]["text"] == "from upstream"

    assert [each.path for each in upstream.received] == [
        *("/v1/chat/completions", "/v1/messages"),
        *("/v1/chat/completions", "/v1/messages"),
    ]
    for each in upstream.received:
        is_openai = each.path == "/v1/chat/completions"
        expected = f"Bearer {OPENAI_SECRET}" if is_openai else ANTHROPIC_SECRET
        assert each.headers.get("authorization" if is_openai else "x-api-key") == expected
        # The caller's own key is nobody else's business.
        assert customer.api_key not in str(each.headers)
    rows = customer.ledger(4)
    costs = {(row["provider"], row["router"], row["cost_nanousd"]) for row in rows}
    assert costs == {
        (f"{ORGANIZATION}/own-openai", router, 11 * 150 + 7 * 600),
        (f"{ORGANIZATION}/own-anthropic", router, 11 * 3_000 + 7 * 15_000),
    }
