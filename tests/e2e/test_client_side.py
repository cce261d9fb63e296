"""The client's side of the command line, and the sums of what it spent."""

from collections import Counter

from tests.e2e.customers import Customer, prices_of
from tests.e2e.stack import Stack

SUMMED = ("requests", "input_total_tokens", "output_tokens", "cost_nanousd")


def test_chat_prints_the_answer_and_usage_sums_up_what_logs_list(
    stack: Stack, customer: Customer
) -> None:
    answers = []
    for model, base_url in zip(("mock-echo", "mock-tokens-8"), stack.base_urls, strict=True):
        done = stack.run(
            *("chat", "--stream", "--model", model, "Good morning, 世界"),
            environ={"TOLLKEEPER_API_KEY": customer.api_key, "TOLLKEEPER_URL": base_url},
        )
        assert (done.returncode, done.stderr) == (0, "")
        answers.append(done.stdout)

    assert answers[0] == "Good morning, 世界\n"
    assert len(answers[1].strip()) == 32
    rows = customer.ledger(2)
    wanted = {
        row["model"]: (1, row["input_total"], row["output"], cost)
        for row, cost in zip(rows, prices_of(rows), strict=True)
    }
    by_model = stack.tollkeeper("usage", "--user", customer.user, "--by", "model")
    assert {each["model"]: tuple(each[name] for name in SUMMED) for each in by_model} == wanted
    (total,) = stack.tollkeeper("usage", "--user", customer.user)
    sums: Counter[str] = Counter()
    for row in wanted.values():
        sums.update(dict(zip(SUMMED, row, strict=True)))
    assert {name: total[name] for name in SUMMED} == sums


def test_chat_says_in_one_line_why_it_was_refused(stack: Stack) -> None:
    done = stack.run("chat", "hello", environ={"TOLLKEEPER_API_KEY": "sk-not-one-of-ours"})

    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.count("\n") == 1
    assert "invalid_api_key" in done.stderr
