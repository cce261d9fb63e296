"""Who this node is, and how it reaches its control planes: by what its settings and its data directory hold.

an operator's certificate (TLS_CERT)       mutual TLS with it; the files are read again as they change
a join token of its own (`tkj_…`)          joins once, keeps what it got, renews it at half its life
what it kept from joining before           the same, without a token
the token that nodes share                 in clear, on loopback only
"""

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final

import structlog

from dataplane.control.channels import LOOPBACK, Channels, TlsChannels
from dataplane.control.identity import (
    Identity,
    IdentityError,
    IdentityFile,
    KeyRequest,
    identity_in_files,
)
from dataplane.control.node_enrollment import Renewal, join
from dataplane.control.node_id import node_id_of
from dataplane.domain.join_tokens import is_join_token, read_join_token
from dataplane.settings import Settings

FILES_INTERVAL_S: Final = 60.0

_log: Final = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Membership:
    """A node as its control planes know it. `token` is empty where it has a certificate."""

    node_id: str
    channels: Channels
    token: str = field(default="", repr=False)


@asynccontextmanager
async def membership(settings: Settings, clock_ms: Callable[[], int]) -> AsyncIterator[Membership]:
    """Become a node, and stay one while the block runs; joining may take a minute.

    Raises:
        ValueError: It cannot be one with these settings; in one line, without secrets.
    """
    try:
        async with _membership(settings, clock_ms) as found:
            for address in settings.control_plane:
                found.channels.check(address)
            yield found
    except IdentityError as error:
        raise ValueError(str(error)) from None


@asynccontextmanager
async def _membership(settings: Settings, clock_ms: Callable[[], int]) -> AsyncIterator[Membership]:
    if settings.tls_cert is not None:
        own = await asyncio.to_thread(_in_files, settings)
        channels = TlsChannels(own)
        async with _running(_follow_files(settings, channels)):
            yield Membership(own.node_id, channels)
        return
    file = IdentityFile(settings.data_dir, settings.node_key_bytes)
    joined = await _joined(settings, file, clock_ms)
    if joined is None:
        node_id = settings.node_id or node_id_of(settings.data_dir)
        yield Membership(node_id, LOOPBACK, settings.join_token.get_secret_value())
        return
    channels = TlsChannels(joined)
    async with _running(Renewal(channels, settings.control_plane, file, clock_ms).run()):
        yield Membership(joined.node_id, channels)


async def _joined(
    settings: Settings, file: IdentityFile, clock_ms: Callable[[], int]
) -> Identity | None:
    """Return what this node got by joining, now or before; None when nodes share a token."""
    text = settings.join_token.get_secret_value()
    if text and not is_join_token(text):
        return None
    kept = await asyncio.to_thread(_read_sealed, file)
    digest = hashlib.sha256(text.encode()).digest()
    if not text or (kept is not None and kept.token_sha256 == digest):
        return _usable(settings, kept, clock_ms())
    try:
        return await _join(settings, file, text, digest, clock_ms)
    except IdentityError as error:
        if kept is None or kept.expires_at_ms <= clock_ms():
            raise
        _log.error("join_token_not_used", reason=str(error), effect="goes on as it joined before")
        return _usable(settings, kept, clock_ms())


async def _join(
    settings: Settings,
    file: IdentityFile,
    text: str,
    digest: bytes,
    clock_ms: Callable[[], int],
) -> Identity:
    token = read_join_token(text)
    node_id = settings.node_id or token.node_id or node_id_of(settings.data_dir)
    request = await asyncio.to_thread(file.read_request)
    if request is None or request.token_sha256 != digest:
        request = KeyRequest.make(node_id, digest)
        await asyncio.to_thread(file.write_request, request)
    joined = await join(token, node_id, request, clock_ms)
    await asyncio.to_thread(file.write, joined)
    _log.info("node_joined", node_id=node_id, expires_at_ms=joined.expires_at_ms)
    return joined


def _read_sealed(file: IdentityFile) -> Identity | None:
    """Return what was kept, encrypted from now on if there is a node key by now; blocks on the disk."""
    kept = file.read()
    try:
        file.seal()
    except OSError as error:
        _log.error("identity_not_encrypted", error=error.strerror)
    return kept


def _usable(settings: Settings, kept: Identity | None, now_ms: int) -> Identity:
    if kept is None:
        raise IdentityError("this node has not joined: set TOLLKEEPER_JOIN_TOKEN")
    if settings.node_id not in (None, kept.node_id):
        raise IdentityError(
            f"this node joined as {kept.node_id}: to be {settings.node_id} it needs a new join token"
        )
    if kept.expires_at_ms <= now_ms:
        _log.error(
            "certificate_expired",
            effect="no control plane lets this node in; it serves what it has",
            remedy="start it with a new join token",
        )
    return kept


def _in_files(settings: Settings) -> Identity:
    certificate, key, authority = settings.tls_cert, settings.tls_key, settings.ca
    if certificate is None or key is None or authority is None:
        raise IdentityError("TOLLKEEPER_TLS_CERT, TLS_KEY and CA go together")
    found = identity_in_files(certificate, key, authority)
    if settings.node_id not in (None, found.node_id):
        raise IdentityError(
            f"TOLLKEEPER_TLS_CERT is of {found.node_id}, and TOLLKEEPER_NODE_ID says {settings.node_id}"
        )
    return found


async def _follow_files(settings: Settings, channels: TlsChannels) -> None:
    """Take the operator's certificate again as its files change; what cannot be used is logged and left."""
    while True:
        await asyncio.sleep(FILES_INTERVAL_S)
        try:
            found = await asyncio.to_thread(_in_files, settings)
        except IdentityError as error:
            _log.error("certificate_not_read", problem=str(error))
            continue
        except Exception:  # task boundary: without it no later certificate would be seen
            _log.exception("certificate_not_read")
            continue
        if found.node_id != channels.identity.node_id:
            _log.error("certificate_not_read", problem="it is another node's: that needs a restart")
        elif found != channels.identity:
            channels.replace(found)
            _log.info("certificate_replaced", expires_at_ms=found.expires_at_ms)


@asynccontextmanager
async def _running(work: Coroutine[object, object, None]) -> AsyncIterator[None]:
    """Run `work` beside the block, and cancel it after."""
    task = asyncio.create_task(work, name="membership")
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
