"""Real providers of `dev`: found in the environment, registered once, renewed when their key changes."""

import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from tollkeeper.admin.v1 import (
    credential_service_pb2,
    limit_service_pb2,
    limit_service_pb2_grpc,
    price_service_pb2,
    provider_service_pb2,
    router_service_pb2,
    router_service_pb2_grpc,
)
from tollkeeper.common.v1 import limits_pb2

from controlplane.cli.dev_providers import RealProvider, real_providers
from controlplane.cli.dev_public_prices import PUBLIC_PRICES
from controlplane.cli.dev_registration import endpoints_of
from controlplane.cli.dev_seed import Seeder, seeder
from controlplane.cli.endpoints import DialectName, ProviderKind
from tests.cli.scripted import Refusal, ScriptedControlPlane, serving
from tests.dev.conftest import FREE_PORTS, StartDev
from tests.dev.running import RunningDev
from tests.e2e.upstream import RecordingUpstream, recording_upstream

TOLLKEEPER = ("-c", "from controlplane.cli import main; main()", "dev")
START_DEADLINE_S = 40.0
FIRST = {
    "OPENAI_API_KEY": "sk-openai-4f1c9b2a7d",
    "ANTHROPIC_API_KEY": "sk-ant-8e3d5a6b1c",
    "GEMINI_API_KEY": "AIza-2b7c4e9f0a",
}
RENEWED = {**FIRST, "OPENAI_API_KEY": "sk-openai-renewed-77aa01"}


@pytest.fixture
def upstream() -> Iterator[RecordingUpstream]:
    with recording_upstream() as recording:
        yield recording


def base_urls(upstream: RecordingUpstream) -> dict[str, str]:
    return {
        "OPENAI_BASE_URL": f"{upstream.url}/openai/v1",
        "ANTHROPIC_BASE_URL": f"{upstream.url}/anthropic",
        "GEMINI_BASE_URL": f"{upstream.url}/gemini/",
    }


def asked(ready: dict[str, Any], model: str, path: str = "/v1/chat/completions") -> httpx.Response:
    """Ask a model through the first data plane."""
    body = {"model": model, "max_tokens": 8, "messages": [{"role": "user", "content": "Hi"}]}
    with httpx.Client(base_url=ready["base_url"], trust_env=False, timeout=10) as client:
        return client.post(path, json=body, headers={"x-api-key": ready["api_key"]})


def everything_written(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())


def environments(ready: dict[str, Any]) -> bytes:
    """Return the environments of all programs of a stack but `dev`, whose it was."""
    pids = ready["pids"]
    children = [pids["controlplane"], *pids["dataplanes"], pids["redis"], pids["mock"]]
    return b"".join(Path(f"/proc/{pid}/environ").read_bytes() for pid in children)


def test_calls_reach_the_real_provider_with_the_key_and_the_next_start_renews_it(
    tmp_path: Path, upstream: RecordingUpstream
) -> None:
    options = (*FREE_PORTS, "--json")
    where = base_urls(upstream)
    starts: list[RunningDev] = []
    try:
        starts.append(
            RunningDev(tmp_path, *options, program=TOLLKEEPER, name="a", environ=where | FIRST)
        )
        first = starts[0].ready(START_DEADLINE_S)
        answers = [
            asked(first, "gpt-4o-mini"),
            asked(first, "claude-haiku-4-5", "/v1/messages"),
            asked(first, "claude-haiku-4-5"),
            asked(first, "gemini-2.5-flash"),
        ]
        assert [answer.status_code for answer in answers] == [200] * 4, answers[-1].text
        assert asked(first, "mock-echo").json()["choices"][0]["message"]["content"] == "Hi"
        presented = [
            (each.path, each.headers.get("authorization") or each.headers.get("x-api-key"))
            for each in upstream.received
        ]
        assert presented == [
            ("/openai/v1/chat/completions", f"Bearer {FIRST['OPENAI_API_KEY']}"),
            ("/anthropic/v1/messages", FIRST["ANTHROPIC_API_KEY"]),
            ("/anthropic/v1/chat/completions", f"Bearer {FIRST['ANTHROPIC_API_KEY']}"),
            ("/gemini/v1beta/openai/chat/completions", f"Bearer {FIRST['GEMINI_API_KEY']}"),
        ]
        check_burst_limit(first)
        seen = environments(first)
        starts[0].interrupt()
        assert starts[0].wait(40) == 0

        upstream.received.clear()
        starts.append(
            RunningDev(tmp_path, *options, program=TOLLKEEPER, name="b", environ=where | RENEWED)
        )
        second = starts[1].ready(START_DEADLINE_S)
        assert asked(second, "gpt-4o-mini").status_code == 200
        (received,) = upstream.received
        assert received.headers["authorization"] == f"Bearer {RENEWED['OPENAI_API_KEY']}"
        assert starts[1].stderr.count("with your own key") == 1
        check_rules(second)
        seen += environments(second) + everything_written(tmp_path)
        for secret in {*FIRST.values(), *RENEWED.values()}:
            assert secret.encode() not in seen
    finally:
        for start in starts:
            start.end()


def check_burst_limit(ready: dict[str, Any]) -> None:
    """Check that the demonstration's key is not held back by its tier's burst."""
    with grpc.insecure_channel(ready["admin_address"]) as channel:
        (limit,) = (
            limit_service_pb2_grpc.LimitServiceStub(channel)
            .GetLimits(
                limit_service_pb2.GetLimitsRequest(subject="key:demo/dev/default"),
                metadata=(("authorization", f"Bearer {ready['admin_token']}"),),
                timeout=10,
            )
            .limits
        )
    assert (limit.unit, limit.window) == (
        limits_pb2.LIMIT_UNIT_REQUESTS,
        limits_pb2.LIMIT_WINDOW_MINUTE,
    )
    assert limit.unlimited


def check_rules(ready: dict[str, Any]) -> None:
    """Check that each provider has one rule, the mock's behind all others."""
    with grpc.insecure_channel(ready["admin_address"]) as channel:
        router = router_service_pb2_grpc.RouterServiceStub(channel).GetRouter(
            router_service_pb2.GetRouterRequest(name="default"),
            metadata=(("authorization", f"Bearer {ready['admin_token']}"),),
            timeout=10,
        )
    providers = [rule.provider for rule in router.rules]
    assert sorted(providers[:-1]) == ["anthropic", "google", "openai"]
    assert providers[-1] == "mock"


def test_a_provider_is_registered_when_its_key_or_its_address_changes_and_only_then(
    start_dev: StartDev,
) -> None:
    def registered(environ: dict[str, str]) -> list[str]:
        dev = start_dev(environ=environ)
        dev.ready()
        dev.interrupt()
        assert dev.wait() == 0
        return [event for event in dev.events() if event.startswith("register")]

    elsewhere = {"OPENAI_BASE_URL": "http://127.0.0.1:9/v1"}
    key, renewed = {"OPENAI_API_KEY": "sk-1"}, {"OPENAI_API_KEY": "sk-2"}

    assert registered({}) == []
    assert registered(key) == ["register openai"]
    assert registered(key) == []
    assert registered(renewed) == ["register openai"]
    assert registered(renewed | elsewhere) == ["register openai"]


def test_a_registration_that_died_half_way_is_finished_by_the_next_start(
    start_dev: StartDev,
) -> None:
    key = {"ANTHROPIC_API_KEY": "sk-ant-1"}
    start_dev(environ=key | {"STANDIN_REGISTRATION_FAILS": "1"}).wait()

    dev = start_dev(environ=key)
    dev.ready()

    assert "register anthropic" in dev.events()
    remembered = (dev.data_dir / "seeded").read_text(encoding="utf-8")
    assert "sk-ant-1" not in remembered
    assert len(json.loads(remembered)["providers"]["anthropic"]["endpoints"]) == 1


@pytest.mark.parametrize(
    ("environ", "complaint"),
    [
        ({"OPENAI_API_KEY": "tk_live_abc"}, "OPENAI_API_KEY holds a key of this gateway"),
        ({"OPENAI_API_KEY": "sk\x7f"}, "OPENAI_API_KEY is no key of visible ASCII characters"),
        (
            {"OPENAI_API_KEY": "sk-1", "OPENAI_BASE_URL": "http://localhost:8080/v1"},
            "OPENAI_BASE_URL is this gateway itself",
        ),
        (
            {"OPENAI_API_KEY": "sk-1", "OPENAI_BASE_URL": "http://u:p@h/v1"},
            "OPENAI_BASE_URL: a base URL holds no credentials",
        ),
    ],
)
def test_what_cannot_be_a_provider_is_left_out_with_a_reason(
    environ: dict[str, str], complaint: str
) -> None:
    found = real_providers(environ, own_port=8080)

    assert found.providers == ()
    assert complaint in found.complaints[0]
    assert environ["OPENAI_API_KEY"] not in found.complaints[0]


@pytest.mark.parametrize(
    ("setting", "url"),
    [
        ("GEMINI_BASE_URL", "http://127.0.0.1:9"),
        ("GEMINI_BASE_URL", "http://127.0.0.1:9/v1beta/"),
        ("GEMINI_BASE_URL", "http://127.0.0.1:9/v1beta/openai/"),
        ("GOOGLE_GEMINI_BASE_URL", "http://127.0.0.1:9"),
    ],
)
def test_googles_base_url_may_be_given_as_any_of_its_clients_takes_it(
    setting: str, url: str
) -> None:
    (provider,) = real_providers({"GEMINI_API_KEY": "AIza", setting: url}).providers

    assert provider.endpoints == {DialectName.OPENAI: "http://127.0.0.1:9/v1beta/openai"}


def test_without_base_urls_the_vendors_own_are_called() -> None:
    providers = real_providers(FIRST).providers

    assert {each.name: dict(each.endpoints) for each in providers} == {
        "openai": {DialectName.OPENAI: "https://api.openai.com/v1"},
        "anthropic": {
            DialectName.ANTHROPIC: "https://api.anthropic.com",
            DialectName.OPENAI: "https://api.anthropic.com/v1",
        },
        "google": {DialectName.OPENAI: "https://generativelanguage.googleapis.com/v1beta/openai"},
    }
    assert not [secret for secret in FIRST.values() if secret in repr(providers)]


@pytest.fixture
def control_plane() -> Iterator[ScriptedControlPlane]:
    with serving() as scripted:
        yield scripted


@pytest.fixture
async def administrator(control_plane: ScriptedControlPlane) -> AsyncIterator[Seeder]:
    async with seeder(control_plane.address, "tka_" + "0" * 43) as connected:
        yield connected


OPENAI = RealProvider(
    ProviderKind.OPENAI, {DialectName.OPENAI: "https://api.openai.com/v1"}, ("gpt-*",), "sk-1"
)
EXISTS = Refusal(grpc.StatusCode.ALREADY_EXISTS, "openai exists", "CONFLICT")
ABSENT = Refusal(grpc.StatusCode.NOT_FOUND, "nothing of that name", "NOT_FOUND")


def provider_at(url: str, kind: str = "openai") -> provider_service_pb2.Provider:
    return provider_service_pb2.Provider(
        name="openai", kind=kind, endpoints=endpoints_of({DialectName.OPENAI: url}), etag="e1"
    )


def router_with(*rules: tuple[int, str]) -> router_service_pb2.Router:
    return router_service_pb2.Router(
        name="default",
        rules=[
            router_service_pb2.Rule(priority=priority, provider=provider, models=["*"])
            for priority, provider in rules
        ],
    )


@pytest.mark.parametrize(
    ("rules", "priority"),
    [([(100, "mock")], 10), ([(1, "mock")], 0), ([(5, "mock"), (7, "mock")], 4), ([], 10)],
)
async def test_the_rule_comes_before_the_mocks_also_in_a_set_up_of_an_earlier_release(
    control_plane: ScriptedControlPlane,
    administrator: Seeder,
    rules: list[tuple[int, str]],
    priority: int,
) -> None:
    control_plane.will_answer("GetCredential", ABSENT)
    control_plane.will_answer("GetRouter", router_with(*rules))

    assert await administrator.register(OPENAI, []) is None

    (created,) = control_plane.requests("CreateRule")
    assert (created.router, created.rule.priority, created.rule.provider) == (
        "default",
        priority,
        "openai",
    )
    (credential,) = control_plane.requests("CreateCredential")
    assert (credential.credential.name, credential.secret) == ("openai/default", "sk-1")


async def test_nothing_that_exists_is_made_again(
    control_plane: ScriptedControlPlane, administrator: Seeder
) -> None:
    known = PUBLIC_PRICES[ProviderKind.OPENAI][0].model
    control_plane.will_answer("CreateProvider", EXISTS)
    control_plane.will_answer("GetProvider", provider_at("https://api.openai.com/v1"))
    control_plane.will_answer(
        "GetCredential",
        # The beginning of the digest of the secret.
        credential_service_pb2.Credential(name="openai/default", fingerprint="0f2c10bf3d128c71"),
    )
    control_plane.will_answer(
        "ListPrices",
        price_service_pb2.ListPricesResponse(
            prices=[price_service_pb2.Price(provider="openai", model=known)]
        ),
    )
    control_plane.will_answer("GetRouter", router_with((3, "openai"), (9, "mock")))

    assert await administrator.register(OPENAI, []) is None

    assert control_plane.requests("UpdateProvider") == []
    assert control_plane.requests("CreateRule") == []
    assert control_plane.requests("RotateCredential") == []
    priced = [request.price.model for request in control_plane.requests("SetPrice")]
    assert known not in priced
    assert len(priced) == len(PUBLIC_PRICES[ProviderKind.OPENAI]) - 1


async def test_a_provider_follows_its_base_url_where_an_earlier_start_had_put_it(
    control_plane: ScriptedControlPlane, administrator: Seeder
) -> None:
    control_plane.will_answer("CreateProvider", EXISTS)
    control_plane.will_answer("GetProvider", provider_at("http://127.0.0.1:9/v1"))
    control_plane.will_answer("GetRouter", router_with((3, "openai")))

    former = [{DialectName.OPENAI: "http://127.0.0.1:9/v1"}]
    assert await administrator.register(OPENAI, former) is None

    (update,) = control_plane.requests("UpdateProvider")
    assert update.provider.endpoints[0].base_url == "https://api.openai.com/v1"
    assert update.provider.etag == "e1"
    (rotation,) = control_plane.requests("RotateCredential")
    assert (rotation.name, rotation.secret) == ("openai/default", "sk-1")


@pytest.mark.parametrize(
    "changed",
    [provider_at("http://127.0.0.1:9/v1"), provider_at("https://api.openai.com/v1", "mock")],
)
async def test_the_key_never_goes_to_an_address_that_an_administrator_chose(
    control_plane: ScriptedControlPlane,
    administrator: Seeder,
    changed: provider_service_pb2.Provider,
) -> None:
    control_plane.will_answer("CreateProvider", EXISTS)
    control_plane.will_answer("GetProvider", changed)

    complaint = await administrator.register(OPENAI, [])

    assert "changed by an administrator" in (complaint or "")
    assert {asked.rpc for asked in control_plane.asked} == {"CreateProvider", "GetProvider"}


@pytest.mark.parametrize("router", [ABSENT, router_with((0, "mock"))])
async def test_a_rule_that_would_take_nothing_is_not_made_and_the_user_is_told(
    control_plane: ScriptedControlPlane,
    administrator: Seeder,
    router: Refusal | router_service_pb2.Router,
) -> None:
    control_plane.will_answer("GetRouter", router)

    complaint = await administrator.register(OPENAI, [])

    assert "openai" in (complaint or "")
    assert control_plane.requests("CreateRule") == []
