from dataclasses import replace

from dataplane.domain.prices import Price, PriceBook
from tests.pipeline.conftest import DataPlane
from tests.pipeline.wire import check_refusal

ANTHROPIC = {"anthropic-version": "2023-06-01"}


def with_prices(data_plane: DataPlane) -> None:
    snapshot = data_plane.configuration.get()
    exact = Price("p2", 1, "mock", "gpt-mock", 0, 1, 1, 1, 1, 1)
    anything = Price("p1", 1, "mock", "mock-*", 0, 1, 1, 1, 1, 1)
    data_plane.use(replace(snapshot, prices=PriceBook([exact, anything])))


async def test_the_list_of_models_has_what_the_caller_may_use(data_plane: DataPlane) -> None:
    with_prices(data_plane)

    openai = (await data_plane.client.get("/v1/models")).json()
    anthropic = (await data_plane.client.get("/v1/models", headers=ANTHROPIC)).json()

    names = ["fast", "gpt-mock", "mock-echo", "mock-tokens-64"]
    assert [entry["id"] for entry in openai["data"]] == names
    assert openai["object"] == "list"
    assert [entry["id"] for entry in anthropic["data"]] == names
    assert (anthropic["first_id"], anthropic["last_id"]) == ("fast", "mock-tokens-64")
    assert anthropic["has_more"] is False


async def test_one_model_is_shown_or_not_found(data_plane: DataPlane) -> None:
    with_prices(data_plane)

    found = await data_plane.client.get("/v1/models/gpt-mock")
    missing = await data_plane.client.get("/v1/models/other/model", headers=ANTHROPIC)

    assert (found.status_code, found.json()["id"]) == (200, "gpt-mock")
    check_refusal(missing, 404, "model_not_found", "anthropic")


async def test_models_need_a_key(data_plane: DataPlane) -> None:
    data_plane.client.headers.pop("authorization")

    answer = await data_plane.client.get("/v1/models")

    check_refusal(answer, 401, "missing_credentials", "openai")


async def test_health_needs_no_key_and_calls_no_provider(data_plane: DataPlane) -> None:
    data_plane.client.headers.pop("authorization")

    for path in ("/health", "/__health", "/healthz", "/livez"):
        answer = await data_plane.client.get(path)
        assert (answer.status_code, answer.json()["status"]) == (200, "healthy")
    for path in ("/health/ready", "/readyz"):
        answer = await data_plane.client.get(path)
        assert (answer.status_code, answer.json()["configuration"]["revision"]) == (200, 7)
    assert (await data_plane.client.get("/")).json()["name"] == "tollkeeper"
    data_plane.configuration.snapshot = None
    answer = await data_plane.client.get("/health/ready")
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    assert data_plane.mock.stats.requests == 0
