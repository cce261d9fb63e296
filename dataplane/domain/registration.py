"""The registration of a device: what its body must be, and how often one may be asked for."""

import hashlib
import unicodedata
from dataclasses import dataclass
from typing import Final

import msgspec

from dataplane.domain.client_addresses import address_prefix
from dataplane.domain.guards import Check, Guard
from dataplane.domain.refusals import Reason, Refusal

# Three short texts, also where each character is escaped; nobody has been identified yet.
MAX_BODY_BYTES: Final = 4 * 1024
MAX_NAME_LENGTH: Final = 100
MAX_PLATFORM_LENGTH: Final = 64
MAX_VERSION_LENGTH: Final = 64
MAX_USER_AGENT_LENGTH: Final = 256

# A burst of 30 is as many as may wait for approval from one address: an office that is equipped on
# one morning is stopped by neither. After that 30 an hour: enough for anybody who types, and what
# one address can cost in changes of the configuration is 720 a day.
PER_ADDRESS: Final = Guard("registrations_per_address", burst=30, interval_ms=120_000)
# Each registration is a transaction and a revision that every data plane applies: one a second is a
# load that nobody notices, however many addresses somebody has. A burst costs the control plane some
# 15-20 ms each: 60 are over in a second, while 300 slowed other traffic down for five.
IN_ALL: Final = Guard("registrations", burst=60, interval_ms=1_000)

# What a name cannot hold: control characters, formats (that turn text around, or hide it), halves
# of characters, ends of lines. Whoever reads the list of devices decides by what they see.
_REFUSED_CATEGORIES: Final = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
# But for the two that join letters and pictures to one: Persian and families need them.
_JOINERS: Final = "\u200c\u200d"
_DIGEST_BYTES: Final = 8


@dataclass(frozen=True, slots=True)
class Registration:
    """A device that asks to be registered: what it says of itself, and where it calls from."""

    device_name: str
    platform: str = ""
    version: str = ""
    address: str = ""
    user_agent: str = ""

    @property
    def address_prefix(self) -> str:
        """Return what its address is counted under."""
        return address_prefix(self.address)

    def checks(self) -> tuple[Check, Check]:
        """Return the throttle that it passes, or does not: its address' own, and that of all."""
        # An address is somebody's: counters know its digest.
        digest = hashlib.blake2b(self.address_prefix.encode(), digest_size=_DIGEST_BYTES)
        return Check(PER_ADDRESS, digest.hexdigest()), Check(IN_ALL, "all")


def registration_of(body: bytes, address: str, user_agent: str) -> Registration:
    """Return the registration that `body` asks for.

    Fields that are not known are passed over: an application may be newer than this gateway.

    Args:
        body: A JSON object with `deviceName` and perhaps `platform` and `version`.
        address: The client's address in canonical text.
        user_agent: Its User-Agent, which is cut to what is kept.

    Raises:
        Refusal: REQUEST_TOO_LARGE beyond 4 KiB; INVALID_REQUEST, naming the field where one is to
            blame.
    """
    if len(body) > MAX_BODY_BYTES:
        raise too_large()
    fields = _object(body)
    name = _text(fields, "deviceName", MAX_NAME_LENGTH)
    if not name:
        raise _invalid("deviceName", "It is missing or empty.")
    return Registration(
        name,
        _text(fields, "platform", MAX_PLATFORM_LENGTH),
        _text(fields, "version", MAX_VERSION_LENGTH),
        address,
        user_agent[:MAX_USER_AGENT_LENGTH],
    )


def too_large() -> Refusal:
    """Return the refusal of a body that is beyond what a registration takes."""
    return Refusal(
        Reason.REQUEST_TOO_LARGE,
        "The body is larger than 4 KiB.",
        details={"limit_bytes": MAX_BODY_BYTES},
    )


def _object(body: bytes) -> dict[str, object]:
    try:
        decoded = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Refusal(Reason.INVALID_REQUEST, "The body is not valid JSON.") from error
    if not isinstance(decoded, dict):
        raise Refusal(Reason.INVALID_REQUEST, "The body is not a JSON object.")
    return decoded


def _text(fields: dict[str, object], param: str, max_length: int) -> str:
    """Return a text without the space around it; empty where it is absent or null."""
    value = fields.get(param)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise _invalid(param, "It is not a string.")
    text = value.strip()
    if len(text) > max_length:
        raise _invalid(param, f"It is longer than {max_length} characters.")
    if not all(map(_is_shown, text)):
        raise _invalid(param, "It holds control characters.")
    return text


def _is_shown(character: str) -> bool:
    return character in _JOINERS or unicodedata.category(character) not in _REFUSED_CATEGORIES


def _invalid(param: str, why: str) -> Refusal:
    return Refusal(Reason.INVALID_REQUEST, f"The field {param} is not valid. {why}", param=param)
