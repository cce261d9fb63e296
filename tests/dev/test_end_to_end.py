"""The real programs, as a user starts them."""

import functools
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from tollkeeper.admin.v1 import (
    api_key_service_pb2,
    api_key_service_pb2_grpc,
    node_service_pb2,
    node_service_pb2_grpc,
    price_service_pb2,
    price_service_pb2_grpc,
    provider_service_pb2,
    provider_service_pb2_grpc,
    router_service_pb2,
    router_service_pb2_grpc,
    user_service_pb2,
    user_service_pb2_grpc,
)
from tollkeeper.config.v1 import resources_pb2

from controlplane.cli.dev_seed import seeder
from controlplane.cli.processes import StartError
from tests.dev.conftest import FREE_PORTS
from tests.dev.running import RunningDev, eventually, is_alive

TOLLKEEPER = ("-c", "from controlplane.cli import main; main()", "dev")
# A cold start of six interpreters on two busy cores.
START_DEADLINE_S = 40.0


def start_tollkeeper(folder: Path, name: str) -> RunningDev:
    options = (*FREE_PORTS, "--replicas", "2", "--json")
    return RunningDev(folder, *options, program=TOLLKEEPER, name=name)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("dev")


@pytest.fixture(scope="module")
def stack(folder: Path) -> Iterator[tuple[RunningDev, dict[str, Any]]]:
    dev = start_tollkeeper(folder, "shared")
    try:
        yield dev, dev.ready(START_DEADLINE_S)
    finally:
        dev.end()


def streamed_answer(base_url: str, api_key: str, text: str) -> str:
    """Return what the mock echoes through a data plane, put together from its stream."""
    body = {
        "model": "mock-echo",
        "stream": True,
        "messages": [{"role": "user", "content": text}],
    }
    headers = {"authorization": f"Bearer {api_key}"}
    pieces: list[str] = []
    with (
        httpx.Client(base_url=base_url, headers=headers, trust_env=False, timeout=10) as client,
        client.stream("POST", "/v1/chat/completions", json=body) as response,
    ):
        lines = [line.removeprefix("data: ") for line in response.iter_lines() if line]
    assert response.status_code == 200, lines
    assert lines[-1] == "[DONE]"
    for line in lines[:-1]:
        for choice in httpx.Response(200, text=line).json()["choices"]:
            pieces.append(choice["delta"].get("content") or "")
    return "".join(pieces)


def administrator(ready: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of an administrator's call."""
    return {"metadata": (("authorization", f"Bearer {ready['admin_token']}"),), "timeout": 10}


def test_a_chat_streams_through_every_replica(stack: tuple[RunningDev, dict[str, Any]]) -> None:
    _, ready = stack

    for base_url in ready["base_urls"]:
        text = f"Hello through {base_url}"
        assert streamed_answer(base_url, ready["api_key"], text) == text


def test_the_first_start_creates_what_is_promised(
    stack: tuple[RunningDev, dict[str, Any]],
) -> None:
    _, ready = stack

    check_what_is_promised(ready)


def check_what_is_promised(ready: dict[str, Any]) -> int:
    """Check the resources of the demonstration and return the revision of their last change."""
    call = administrator(ready)

    with grpc.insecure_channel(ready["admin_address"]) as channel:
        user = user_service_pb2_grpc.UserServiceStub(channel).GetUser(
            user_service_pb2.GetUserRequest(name="demo/dev"), **call
        )
        key = api_key_service_pb2_grpc.ApiKeyServiceStub(channel).GetApiKey(
            api_key_service_pb2.GetApiKeyRequest(name="demo/dev/default"), **call
        )
        provider = provider_service_pb2_grpc.ProviderServiceStub(channel).GetProvider(
            provider_service_pb2.GetProviderRequest(name="mock"), **call
        )
        router = router_service_pb2_grpc.RouterServiceStub(channel).GetRouter(
            router_service_pb2.GetRouterRequest(name="default"), **call
        )
        prices = price_service_pb2_grpc.PriceServiceStub(channel).ListPrices(
            price_service_pb2.ListPricesRequest(provider="mock"), **call
        )

    assert user.tier == "paid"
    assert key.router == "default"
    assert provider.kind == "mock"
    assert {endpoint.dialect: endpoint.base_url for endpoint in provider.endpoints} == {
        resources_pb2.DIALECT_OPENAI: f"{ready['mock_url']}/v1",
        resources_pb2.DIALECT_ANTHROPIC: ready["mock_url"],
    }
    assert [(rule.provider, list(rule.models)) for rule in router.rules] == [("mock", ["*"])]
    rates = [(price.model, price.rates) for price in prices.prices]
    assert [model for model, _ in rates] == ["mock-*"]
    assert rates[0][1].input_nanousd_per_million == 1_000_000_000
    assert rates[0][1].output_nanousd_per_million == 2_000_000_000
    return max(key.revision, provider.revision)


async def test_seeding_again_replaces_a_lost_key_and_doubles_nothing(
    stack: tuple[RunningDev, dict[str, Any]],
) -> None:
    _, ready = stack

    async with seeder(ready["admin_address"], ready["admin_token"]) as again:
        api_key = await again.seed(ready["mock_url"], None)
        unchanged = await again.seed(ready["mock_url"], api_key)

    assert unchanged == api_key != ready["api_key"]
    # The other tests share the stack.
    ready["api_key"] = api_key
    revision = check_what_is_promised(ready)
    eventually(functools.partial(is_applied_everywhere, ready, revision))


async def test_the_mock_is_followed_only_where_the_configuration_still_points_to_it(
    stack: tuple[RunningDev, dict[str, Any]],
) -> None:
    _, ready = stack
    elsewhere = "http://127.0.0.1:9"

    async with seeder(ready["admin_address"], ready["admin_token"]) as administrator_of_dev:
        await administrator_of_dev.move_mock(elsewhere, "http://127.0.0.1:10")
        check_what_is_promised(ready)

        await administrator_of_dev.move_mock(ready["mock_url"], elsewhere)
        with pytest.raises(AssertionError):
            check_what_is_promised(ready)

        await administrator_of_dev.move_mock(elsewhere, ready["mock_url"])
    revision = check_what_is_promised(ready)
    eventually(functools.partial(is_applied_everywhere, ready, revision))


async def test_a_refusal_of_the_control_plane_ends_the_start_with_its_reason(
    stack: tuple[RunningDev, dict[str, Any]],
) -> None:
    _, ready = stack

    with pytest.raises(StartError, match="UNAUTHENTICATED"):
        async with seeder(ready["admin_address"], "tka_" + "0" * 43) as stranger:
            await stranger.seed(ready["mock_url"], None)


def test_the_stack_serves_again_after_each_of_its_servers_was_killed(
    stack: tuple[RunningDev, dict[str, Any]],
) -> None:
    dev, ready = stack
    pids = ready["pids"]

    for pid in (pids["redis"], pids["mock"], pids["controlplane"], pids["dataplanes"][0]):
        os.kill(pid, signal.SIGKILL)
    eventually(lambda: dev.stderr.count(" is back (pid ") >= 4, START_DEADLINE_S)

    for base_url in ready["base_urls"]:
        eventually(functools.partial(answers, base_url, ready["api_key"]))


def is_applied_everywhere(ready: dict[str, Any], revision: int) -> bool:
    with grpc.insecure_channel(ready["admin_address"]) as channel:
        nodes = (
            node_service_pb2_grpc.NodeServiceStub(channel)
            .ListNodes(node_service_pb2.ListNodesRequest(), **administrator(ready))
            .nodes
        )
    applied = [node.applied.revision >= revision for node in nodes]
    return applied == [True] * len(ready["base_urls"])


def answers(base_url: str, api_key: str) -> bool:
    try:
        return streamed_answer(base_url, api_key, "still there") == "still there"
    except (AssertionError, httpx.HTTPError):
        return False


def test_a_second_start_keeps_the_key_and_what_an_administrator_changed(tmp_path: Path) -> None:
    first = start_tollkeeper(tmp_path, "first")
    second: RunningDev | None = None
    try:
        before = first.ready(START_DEADLINE_S)
        with grpc.insecure_channel(before["admin_address"]) as channel:
            user_service_pb2_grpc.UserServiceStub(channel).UpdateUser(
                user_service_pb2.UpdateUserRequest(
                    user=user_service_pb2.User(name="demo/dev", tier="free"),
                    update_mask=FieldMask(paths=["tier"]),
                ),
                **administrator(before),
            )
        first.interrupt()
        assert first.wait(40) == 0
        assert not any(map(is_alive, all_pids(before)))

        second = start_tollkeeper(tmp_path, "second")
        after = second.ready(START_DEADLINE_S)

        kept = ("api_key", "admin_token", "mock_url")
        assert [after[name] for name in kept] == [before[name] for name in kept]
        assert streamed_answer(after["base_url"], after["api_key"], "again") == "again"
        with grpc.insecure_channel(after["admin_address"]) as channel:
            user = user_service_pb2_grpc.UserServiceStub(channel).GetUser(
                user_service_pb2.GetUserRequest(name="demo/dev"), **administrator(after)
            )
        assert user.tier == "free"

        second.interrupt(signal.SIGKILL)
        eventually(lambda: not any(map(is_alive, all_pids(after))), 5)
    finally:
        first.end()
        if second is not None:
            second.end()


def all_pids(ready: dict[str, Any]) -> list[int]:
    pids = ready["pids"]
    return [pids["controlplane"], *pids["dataplanes"], pids["redis"], pids["mock"]]
