"""Resources as they were received, and what their readers share."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

from dataplane.domain.secret import Secret

V = TypeVar("V")


@dataclass(frozen=True, slots=True)
class RawResource:
    """A resource as it was received."""

    kind: int
    resource_id: str
    revision: int
    payload: bytes


@dataclass(frozen=True, slots=True)
class RawSecret:
    """A provider's secret as it was received."""

    credential_id: str
    version: int
    secret: Secret


class UnusableResourceError(Exception):
    """One resource cannot be used; the text says why."""


def referred(found: Mapping[str, V], resource_id: str, noun: str) -> V:
    """Return the resource that another one names.

    Raises:
        UnusableResourceError: It is not there.
    """
    try:
        return found[resource_id]
    except KeyError:
        raise UnusableResourceError(f"its {noun} {resource_id!r} is not there") from None
