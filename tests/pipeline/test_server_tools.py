"""What providers run by themselves: under a hard budget it is refused, however it is written."""

import json

import pytest

from dataplane.domain.principals import LimitEntry
from dataplane.domain.refusals import Refusal
from dataplane.http.codecs import anthropic, openai
from tests.pipeline.conftest import DataPlane
from tests.pipeline.scripted import ScriptedProvider
from tests.pipeline.test_bad_bodies import PATHS
from tests.pipeline.wire import check_refusal

CALLS_OF = {"openai": openai.call_of, "anthropic": anthropic.call_of}
HARD = (LimitEntry("spend", "month", 10**12),)
SCHEMA = '"input_schema":{"type":"object","properties":{"type":{"type":"string"}}}'


def body(fields: str) -> bytes:
    return b'{"model":"m","max_tokens":20,"messages":[{"role":"user","content":"x"}],%b}' % (
        fields.encode()
    )


def tools_in(dialect: str, fields: str) -> tuple[str, ...]:
    return CALLS_OF[dialect]("0" * 36, body(fields), {}, "").server_tools


@pytest.mark.parametrize(
    ("dialect", "fields"),
    [
        ("openai", '"tools":null,"web_search_options":null'),
        ("openai", '"tools":[]'),
        ("openai", '"tools":[{"type":"function","function":{"name":"f","parameters":{}}}]'),
        ("openai", '"tools":[{"type":"custom","custom":{"name":"f"}}]'),
        ("anthropic", '"tools":null,"mcp_servers":null,"context_management":null'),
        ("anthropic", '"tools":[],"mcp_servers":[],"context_management":{"edits":[]}'),
        ("anthropic", '"tools":[{"name":"f",%s}]' % SCHEMA),
        ("anthropic", '"tools":[ { "type" : "custom" , "name":"type", %s } ]' % SCHEMA),
        ("anthropic", '"tools":[{"type":null,"name":"f"}]'),
        ("anthropic", '"tools":[{"name":"f","description":"a \\u0060quoted\\u0060 word"}]'),
        ("anthropic", '"tools":[{"type":"bash_20250124","name":"bash"}]'),
        ("anthropic", '"tools":[{"type":"text_editor_20250728","name":"x"}]'),
        ("anthropic", '"tools":[{"type":"computer_20251124","name":"computer"}]'),
        ("anthropic", '"tools":[{"type":"memory_20250818","name":"memory"}]'),
        ("anthropic", '"context_management":{"edits":[{"type":"clear_tool_uses_20250919"}]}'),
    ],
)
def test_what_the_caller_runs_is_bounded(dialect: str, fields: str) -> None:
    assert tools_in(dialect, fields) == ()


@pytest.mark.parametrize(
    ("dialect", "fields", "named"),
    [
        ("openai", '"tools":[{"type":"web_search"}]', ("web_search",)),
        ("openai", '"tools":[{"type":"function"},{"type":"mcp"}]', ("mcp",)),
        ("openai", '"tools":[{"google_search":{}}]', ("tools",)),
        ("openai", '"tools":[{"type":""}]', ("tools",)),
        ("openai", '"tools":[{"type":"x"},{"type":"x"}],"web_search_options":{}',
         ("x", "web_search_options")),
        ("anthropic", '"tools":[{"type":"web_fetch_20250910"}]', ("web_fetch_20250910",)),
        ("anthropic", '"tools":[{"type":"tool_of_tomorrow_1"}]', ("tool_of_tomorrow_1",)),
        ("anthropic", '"tools":[{"type":"bash_code_execution_20250825"}]',
         ("bash_code_execution_20250825",)),
        ("anthropic", '"tools":[{"type":"custom_1"}]', ("custom_1",)),
        ("anthropic", '"mcp_servers":[{"type":"url"}]', ("mcp_servers",)),
        ("anthropic", '"context_management":{"edits":[{"type":"compact_20260112"}]}',
         ("context_management",)),
        ("anthropic", '"context_management":{"edits":[{"type":"clear_1"},{"type":"other_1"}]}',
         ("context_management",)),
        ("anthropic", '"context_management":{"edits":[{}]}', ("context_management",)),
    ],
)  # fmt: skip
def test_every_other_tool_is_taken_for_the_provider_s_own(
    dialect: str, fields: str, named: tuple[str, ...]
) -> None:
    assert tools_in(dialect, fields) == named


@pytest.mark.parametrize(
    ("dialect", "fields", "named"),
    [
        ("openai", '"tools":[{"type":"web_search","type":"function"}]', "tools"),
        ("openai", '"tools":[{"type":"web_search","\\u0074ype":"function"}]', "tools"),
        ("openai", '"tools":[{"\\u0074ype":"web_search","type":"function"}]', "tools"),
        ("anthropic", '"tools":[{"type":"web_search_1","type":"custom",%s}]' % SCHEMA, "tools"),
        ("anthropic", '"tools":[{"type":"web_search_1","type":null}]', "tools"),
        ("anthropic", '"context_management":{"edits":[{"type":"compact_1","type":"clear_1"}]}',
         "context_management"),
        ("anthropic", '"context_management":{"edits":[{"type":"compact_1"}],"edits":[]}',
         "context_management"),
        ("anthropic", '"context_management":{"edits":[{"type":"compact_1"}],"edit\\u0073":null}',
         "context_management"),
    ],
)  # fmt: skip
def test_a_type_that_is_named_twice_is_not_believed(dialect: str, fields: str, named: str) -> None:
    assert tools_in(dialect, fields) == (named,)


def test_types_are_shown_shortened_and_of_many_a_few() -> None:
    tools = ",".join('{"type":"%d%s"}' % (number, "x" * 500) for number in range(100))

    shown = tools_in("openai", f'"tools":[{tools}]')

    assert len(shown) == 8
    assert all(len(each) == 64 for each in shown)


@pytest.mark.parametrize(
    ("dialect", "fields", "param"),
    [
        ("openai", '"tools":{}', "tools"),
        ("openai", '"tools":[5]', "tools[0]"),
        ("anthropic", '"tools":[{},{"type":5}]', "tools[1].type"),
        ("anthropic", '"mcp_servers":{}', "mcp_servers"),
        ("anthropic", '"context_management":[]', "context_management"),
        ("anthropic", '"context_management":{"edits":{}}', "context_management.edits"),
        ("anthropic", '"context_management":{"edits":[5]}', "context_management.edits[0]"),
    ],
)
def test_tools_of_the_wrong_type_are_refused_and_the_field_named(
    dialect: str, fields: str, param: str
) -> None:
    with pytest.raises(Refusal) as refused:
        tools_in(dialect, fields)
    assert refused.value.param == param


@pytest.mark.parametrize(
    ("dialect", "fields", "named"),
    [
        ("openai", '"tools":[{"type":"web_search"}]', "web_search"),
        ("anthropic", '"tools":[{"type":"tool_of_tomorrow_1"}]', "tool_of_tomorrow_1"),
        ("anthropic", '"context_management":{"edits":[{"type":"compact_20260112"}]}',
         "context_management"),
    ],
)  # fmt: skip
async def test_a_hard_budget_refuses_them_before_anything_is_sent(
    data_plane: DataPlane, provider: ScriptedProvider, dialect: str, fields: str, named: str
) -> None:
    data_plane.calls(provider.url, user=HARD)
    refused = await data_plane.client.post(PATHS[dialect], content=body(fields))
    data_plane.calls(provider.url)
    served = await data_plane.client.post(PATHS[dialect], content=body(fields))

    error = check_refusal(refused, 400, "unsupported_parameter", dialect)
    assert named in error["message"]
    assert served.status_code == 200
    assert [request.body for request in provider.received] == [body(fields)]


@pytest.mark.parametrize(
    ("dialect", "hidden", "shown"),
    [
        ("openai", '"tools":[{"type":"web_search"}]', '"tools":[]'),
        ("openai", '"tools":[{"type":"web_search"}]', '"tool\\u0073":null'),
        ("openai", '"web_search_options":{}', '"web_search_options":null'),
        ("anthropic", '"tools":[{"type":"web_search_20250305"}]', '"tools":[]'),
        ("anthropic", '"mcp_servers":[{"type":"url"}]', '"mcp_servers":[]'),
        ("anthropic", '"context_management":{"edits":[{"type":"compact_1"}]}',
         '"context_management":null'),
        ("anthropic", '"system":[{"type":"text","text":"hello"}]', '"system":null'),
    ],
)  # fmt: skip
async def test_a_field_that_stands_twice_is_sent_as_it_was_checked(
    data_plane: DataPlane, provider: ScriptedProvider, dialect: str, hidden: str, shown: str
) -> None:
    data_plane.calls(provider.url, user=HARD)

    answer = await data_plane.client.post(PATHS[dialect], content=body(f"{hidden},{shown}"))

    assert answer.status_code == 200
    [request] = provider.received
    pairs = json.loads(request.body, object_pairs_hook=lambda pairs: pairs)
    [(name, value)] = json.loads("{%s}" % shown).items()
    assert [given for field, given in pairs if field == name] == [value]
