"""Callers who were revoked while this proxy was cut off from its control plane, but not from Redis."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from dataplane.admitting import Admitting
from dataplane.domain.authentication import authenticate, revoked_refusal
from dataplane.domain.credentials import Credentials
from dataplane.domain.limiting import LimitsUnavailable
from dataplane.domain.principals import LimitEntry
from dataplane.domain.refusals import Refusal
from dataplane.domain.revocations import Revocation
from tests.pipeline.conftest import DataPlane
from tests.unit.dataplane.configuration import device, snapshot

KEY_ID = "abcdefghijkl"
SUBJECTS = {"key": KEY_ID, "user": "u1", "organization": "o1"}
LIMITS = {"user": (LimitEntry("requests", "day", 100), LimitEntry("spend", "month", 10**9))}


def of(kind: str, revision: int = 8) -> Revocation:
    """Return a revocation; the proxy's configuration is of revision 7."""
    return Revocation(kind, SUBJECTS[kind], "o1", "epoch", revision, terminates=False)


async def mark(data_plane: DataPlane, revocation: Revocation) -> list[Revocation]:
    """Revoke as another node does; return the list of what the proxy will tell of it."""
    told: list[Revocation] = []
    pipeline = data_plane.pipeline
    pipeline.admitting = Admitting(
        data_plane.limiter, pipeline.bills, pipeline.clock_ms, on_revoked_elsewhere=told.append
    )
    data_plane.limited(**LIMITS)
    data_plane.limiter.mark_revoked(revocation)
    await data_plane.until(lambda: not data_plane.limiter.unwritten_marks)
    return told


def without_request_id(text: str, request_id: str) -> str:
    return text.replace(request_id, "")


@pytest.mark.parametrize("dialect", ["openai", "anthropic"])
@pytest.mark.parametrize("kind", SUBJECTS)
async def test_a_caller_who_was_revoked_elsewhere_is_refused_as_if_it_were_known_here(
    data_plane: DataPlane, kind: str, dialect: str
) -> None:
    told = await mark(data_plane, of(kind))
    ask = data_plane.chat if dialect == "openai" else data_plane.message

    refused = await ask()

    assert told == [of(kind)]
    assert (await data_plane.counted("user_requests_per_day"), data_plane.records.opens) == (0, [])
    assert (await data_plane.held_nanousd(), data_plane.records.closes) == (0, [])
    # As the stream would have said so.
    known = data_plane.configuration.get()
    data_plane.use(replace(known, revoked=frozenset({(kind, SUBJECTS[kind])})))
    expected = await ask()
    names = ("x-tollkeeper-error", "retry-after", "x-should-retry", "content-type")
    assert refused.status_code == expected.status_code
    assert [refused.headers.get(each) for each in names] == [
        expected.headers.get(each) for each in names
    ]
    own_id = "request-id"
    assert without_request_id(refused.text, refused.headers.get(own_id, "-")) == without_request_id(
        expected.text, expected.headers.get(own_id, "-")
    )


async def test_a_proxy_that_has_caught_up_decides_by_itself(data_plane: DataPlane) -> None:
    told = await mark(data_plane, of("user", revision=7))

    assert (await data_plane.chat()).status_code == 200

    assert told == []
    assert await data_plane.counted("user_requests_per_day") == 1


async def test_while_counters_cannot_be_asked_marks_cannot_either(
    data_plane: DataPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = await mark(data_plane, of("user"))

    async def away(*_: object) -> None:
        raise LimitsUnavailable("the counters cannot be asked")

    monkeypatch.setattr(data_plane.limiter, "reserve", away)
    refused = await data_plane.chat()

    assert refused.headers["x-tollkeeper-error"] == "limits_unavailable"
    assert told == []


def refusal_in(work: Callable[[], object]) -> tuple[object, ...]:
    with pytest.raises(Refusal) as refused:
        work()
    it = refused.value
    return it.reason, it.message, dict(it.details), it.retry_after_seconds


def test_a_device_that_was_revoked_elsewhere_learns_its_status() -> None:
    one = device()
    known = snapshot(devices_by_sha256={b"token": one})
    assert authenticate(known, Credentials(b"token", device_id="d1"), 1_000) is one.principal

    ahead = replace(known, revoked=frozenset({("device", "d1")}))
    expected = refusal_in(lambda: authenticate(ahead, Credentials(b"token", device_id="d1"), 1_000))

    it = revoked_refusal(known, "device")
    assert (it.reason, it.message, dict(it.details), it.retry_after_seconds) == expected
