import pytest

from dataplane.domain.credentials import check_of
from tests.pipeline.conftest import KEY, DataPlane
from tests.pipeline.test_bad_bodies import PATHS
from tests.pipeline.wire import check_refusal, head, raw

BODY = b'{"model":"mock-echo","max_tokens":20,"messages":[{"role":"user","content":"x"}]}'
_HEAD = "tk_live_abcdefghijkl_" + "T" * 43
OTHER_KEY = _HEAD + check_of(_HEAD)
LENGTH = b"content-length: %d" % len(BODY)


@pytest.mark.parametrize("dialect", PATHS)
@pytest.mark.parametrize(
    ("lines", "key", "status", "code"),
    [
        ([b"content-type: text/plain"], KEY, 415, "unsupported_media_type"),
        ([b"content-type: application/jsonp"], KEY, 415, "unsupported_media_type"),
        ([], "sk-1234", 401, "invalid_api_key"),
        ([], KEY[:-1] + "_", 401, "invalid_api_key"),
        ([], OTHER_KEY, 401, "invalid_api_key"),
        ([b"authorization: Basic dXNlcjpwYXNz"], None, 401, "invalid_api_key"),
        ([b"x-api-key: caf\xe9\xff"], None, 401, "invalid_api_key"),
        ([b"x-api-key: tk_live_\xb2\xb2"], None, 401, "invalid_api_key"),
        ([b"x-api-key: " + OTHER_KEY.encode()], KEY, 400, "duplicate_credentials"),
        ([b"x-iam-org: other"], KEY, 401, "invalid_api_key"),
        ([b"x-tollkeeper-timeout: soon"], KEY, 400, "invalid_request"),
        ([b"x-tollkeeper-timeout: nan"], KEY, 400, "invalid_request"),
        ([b"x-tollkeeper-timeout: -1"], KEY, 400, "invalid_request"),
    ],
)
async def test_a_bad_head_is_refused(
    data_plane: DataPlane,
    dialect: str,
    lines: list[bytes],
    key: str | None,
    status: int,
    code: str,
) -> None:
    answer = await raw(data_plane, head(PATHS[dialect], LENGTH, *lines, key=key) + BODY)

    check_refusal(answer, status, code, dialect)
    assert data_plane.mock.stats.requests == 0


@pytest.mark.parametrize("dialect", PATHS)
async def test_a_call_without_credentials_is_told_which_headers_there_are(
    data_plane: DataPlane, dialect: str
) -> None:
    answer = await raw(data_plane, head(PATHS[dialect], LENGTH, key=None) + BODY)

    error = check_refusal(answer, 401, "missing_credentials", dialect)
    assert error["details"]["headers"] == [
        "authorization",
        "x-api-key",
        "x-goog-api-key",
        "x-iam-key",
        "x-device-id",
        "x-session-token",
    ]


@pytest.mark.parametrize("dialect", PATHS)
@pytest.mark.parametrize(
    "lines",
    [
        [b"x-api-key: " + KEY.encode()],
        [b"x-goog-api-key: " + KEY.encode(), b"x-iam-key: " + KEY.encode()],
        [b"authorization: bearer  " + KEY.encode(), b"x-iam-org: acme"],
        [b"x-api-key: " + KEY.encode(), b"x-request-id: caf\xe9"],
        [b"x-api-key: " + KEY.encode(), b"anthropic-version: caf\xe9", b"anthropic-beta: \xff"],
        [b"x-api-key: " + KEY.encode(), b"content-type: Application/JSON; charset=utf-8"],
        [b"x-api-key: " + KEY.encode(), b"x-unknown: \x80\xff", b"x-tollkeeper-timeout: inf"],
    ],
)
async def test_a_good_head_is_served(
    data_plane: DataPlane, dialect: str, lines: list[bytes]
) -> None:
    answer = await raw(data_plane, head(PATHS[dialect], LENGTH, *lines, key=None) + BODY)

    assert (answer.status, answer.headers.get("x-client-request-id")) == (200, None)


@pytest.mark.parametrize("dialect", PATHS)
async def test_a_body_with_two_lengths_is_refused(data_plane: DataPlane, dialect: str) -> None:
    lines = LENGTH, b"transfer-encoding: chunked"

    answer = await raw(data_plane, head(PATHS[dialect], *lines) + b"0\r\n\r\n")

    error = check_refusal(answer, 400, "invalid_request", dialect)
    assert "length" in error["message"]


@pytest.mark.parametrize("dialect", PATHS)
async def test_a_path_that_takes_posts_refuses_other_methods(
    data_plane: DataPlane, dialect: str
) -> None:
    for method in ("GET", "PUT", "DELETE", "PATCH"):
        answer = await raw(data_plane, head(PATHS[dialect], method=method))

        check_refusal(answer, 405, "method_not_allowed", dialect)
        assert "POST" in answer.headers["allow"]


@pytest.mark.parametrize(
    ("path", "lines", "dialect"),
    [
        ("/v1/nothing", [], "openai"),
        ("/v1/chat/completions/", [], "openai"),
        ("/v1/messages/nothing", [], "anthropic"),
        ("/v1/nothing", [b"anthropic-version: 2023-06-01"], "anthropic"),
        ("/%00", [], "openai"),
        ("/caf%C3%A9/%FF", [], "openai"),
    ],
)
async def test_an_unknown_path_is_not_found(
    data_plane: DataPlane, path: str, lines: list[bytes], dialect: str
) -> None:
    for method in ("GET", "POST"):
        answer = await raw(data_plane, head(path, *lines, b"content-length: 0", method=method))

        check_refusal(answer, 404, "not_found", dialect)


async def test_a_refused_body_leaves_no_half_request_on_the_connection(
    data_plane: DataPlane,
) -> None:
    # What follows the head is the body's beginning and must not be read as a request.
    smuggled = head("/v1/models", method="GET")

    answer = await raw(
        data_plane, head("/v1/chat/completions", b"content-length: 99999999") + smuggled
    )

    check_refusal(answer, 413, "request_too_large", "openai")
