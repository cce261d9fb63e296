"""What is malformed gets a clear answer in its own dialect, on both planes, and changes nothing."""

import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from google.rpc import (  # type: ignore[import-untyped]  # has none
    error_details_pb2,
    status_pb2,
)
from tollkeeper.admin.v1 import user_service_pb2, user_service_pb2_grpc

from tests.e2e.commands import clean_environment
from tests.e2e.customers import ORGANIZATION, Customer
from tests.e2e.stack import CALL_DEADLINE_S, PROGRAM, Stack

CHAT, MESSAGES = "/v1/chat/completions", "/v1/messages"
_JSON = {"content-type": "application/json"}
# What is sent, and the status and code that answer it.
MALFORMED: tuple[tuple[str, bytes, Mapping[str, str], int, str], ...] = (
    ("no JSON", b"{", _JSON, 400, "invalid_request"),
    ("no object", b"[]", _JSON, 400, "invalid_request"),
    ("empty", b"", _JSON, 400, "invalid_request"),
    ("no model", b'{"messages":[{"role":"user","content":"a"}]}', _JSON, 400, "invalid_request"),
    ("no messages", b'{"model":"mock-echo","max_tokens":5}', _JSON, 400, "invalid_request"),
    (
        "a negative cap",
        b'{"model":"mock-echo","max_tokens":-1,"messages":[{"role":"user","content":"a"}]}',
        _JSON,
        400,
        "invalid_request",
    ),
    ("bad UTF-8", b'{"model":"\xff\xfe"}', _JSON, 400, "invalid_request"),
    ("deep nesting", b"[" * 100_000, _JSON, 400, "invalid_request"),
    ("not JSON's type", b"a=b", {"content-type": "text/plain"}, 415, "unsupported_media_type"),
    ("too large", b" " * (10 * 1024 * 1024 + 1), _JSON, 413, "request_too_large"),
)


@pytest.mark.parametrize("path", [CHAT, MESSAGES])
def test_every_malformed_call_is_refused_in_its_own_dialect_with_a_stable_code(
    stack: Stack, http: httpx.Client, path: str
) -> None:
    key = {"x-api-key": stack.line["api_key"]}
    for what, body, headers, status, code in MALFORMED:
        for base_url in stack.base_urls:
            answer = http.post(base_url + path, content=body, headers={**headers, **key})
            check_refusal(answer, path, status, code, what)


def check_refusal(answer: httpx.Response, path: str, status: int, code: str, what: str) -> None:
    seen = (answer.status_code, answer.headers.get("x-tollkeeper-error"))
    assert seen == (status, code), f"{what}: {answer.text}"
    body: dict[str, Any] = answer.json()
    assert body["error"]["message"], what
    assert "Traceback" not in answer.text, what
    if path == MESSAGES:
        assert body["type"] == "error", what
        assert body["request_id"] == answer.headers["x-request-id"], what
    else:
        assert body["error"]["code"] == code, what


def test_paths_methods_and_credentials_that_are_wrong_are_refused_with_their_own_codes(
    stack: Stack, http: httpx.Client
) -> None:
    base_url, key = stack.base_urls[0], stack.line["api_key"]
    call = b'{"model":"mock-echo","max_tokens":5,"messages":[{"role":"user","content":"a"}]}'
    for path in (CHAT, MESSAGES):
        url = base_url + path
        nobody = http.post(url, content=call, headers=_JSON)
        check_refusal(nobody, path, 401, "missing_credentials", "no credentials")
        two = http.post(
            url, content=call, headers={**_JSON, "x-api-key": key, "authorization": "Bearer other"}
        )
        check_refusal(two, path, 400, "duplicate_credentials", "two credentials")
        check_refusal(http.delete(url), path, 405, "method_not_allowed", "a wrong method")
        below = http.post(f"{url}/nothing", headers={"x-api-key": key})
        check_refusal(below, path, 404, "not_found", "a wrong path")
        unknown = call.replace(b"mock-echo", b"mock-unheard-of")
        answer = http.post(url, content=unknown, headers={**_JSON, "x-api-key": key})
        assert answer.status_code == 404, answer.text
        # A name without a price is refused, because its cost would be unknown.
        free = call.replace(b"mock-echo", b"unpriced-mock")
        unpriced = http.post(url, content=free, headers={**_JSON, "x-api-key": key})
        check_refusal(unpriced, path, 400, "model_not_priced", "a model without a price")


def test_an_invalid_admin_call_names_the_field_and_changes_nothing(
    stack: Stack, customer: Customer
) -> None:
    before = stack.tollkeeper("user", "list"), stack.tollkeeper("limit", "list")
    metadata = (("authorization", f"Bearer {stack.line['admin_token']}"),)

    with grpc.insecure_channel(stack.line["admin_address"]) as channel:
        users = user_service_pb2_grpc.UserServiceStub(channel)
        with pytest.raises(grpc.RpcError) as refusal:
            users.CreateUser(
                user_service_pb2.CreateUserRequest(
                    user=user_service_pb2.User(name="no slash, and capitals: ALICE")
                ),
                metadata=metadata,
                timeout=CALL_DEADLINE_S,
            )
        with pytest.raises(grpc.RpcError) as of_a_stranger:
            users.ListUsers(
                user_service_pb2.ListUsersRequest(),
                metadata=(("authorization", "Bearer tka_" + "0" * 43),),
                timeout=CALL_DEADLINE_S,
            )

    assert refusal.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "user.name" in fields_of(refusal.value)
    assert of_a_stranger.value.code() is grpc.StatusCode.UNAUTHENTICATED
    for arguments, word in (
        (("user", "create", "nowhere/alice"), "nowhere"),
        (("key", "create", f"{customer.user}/second", "--router", "unheard-of"), "unheard-of"),
        (("limit", "set", "--user", f"{ORGANIZATION}/nobody", "--parallel", "1"), "nobody"),
    ):
        done = stack.run(*arguments, "-o", "json")
        assert (done.returncode, done.stdout) == (1, ""), arguments
        assert done.stderr.count("\n") == 1, done.stderr
        assert word in done.stderr
    assert stack.run("limit", "set", "--user", customer.user, "--parallel", "-1").returncode == 2
    assert (stack.tollkeeper("user", "list"), stack.tollkeeper("limit", "list")) == before


def fields_of(error: Any) -> list[str]:  # Any: what a failed call raises is a call too
    details = dict(error.trailing_metadata())["grpc-status-details-bin"]
    fields: list[str] = []
    for detail in status_pb2.Status.FromString(details).details:
        bad = error_details_pb2.BadRequest()
        if detail.Unpack(bad):
            fields += [violation.field for violation in bad.field_violations]
    return fields


@pytest.mark.parametrize("program", ["controlplane", "dataplane", "dev"])
def test_an_unknown_setting_stops_each_program_with_one_line_that_names_it(
    program: str, tmp_path: Path
) -> None:
    done = subprocess.run(
        [PROGRAM, program],
        cwd=tmp_path,
        env=clean_environment({"TOLLKEEPER_DALY_BUDGET_USD": "5"}),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        check=False,
        timeout=CALL_DEADLINE_S,
    )

    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1, done.stderr
    assert "TOLLKEEPER_DALY_BUDGET_USD" in done.stderr
    assert list(tmp_path.iterdir()) == []
