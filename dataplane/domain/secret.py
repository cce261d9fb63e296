"""A secret that does not print."""

from typing import final


@final
class Secret:
    """Bytes that show their last four characters at most; `reveal` is the only way to them."""

    __slots__ = ("_value",)

    def __init__(self, value: bytes) -> None:
        self._value = value

    def reveal(self) -> bytes:
        """Return the bytes, for the one place that sends or encrypts them."""
        return self._value

    def __repr__(self) -> str:
        tail = self._value[-4:].decode("ascii", "replace") if len(self._value) >= 16 else ""
        return f"Secret(…{tail})"

    __str__ = __repr__

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and self._value == other._value

    def __hash__(self) -> int:
        return hash(self._value)

    def __reduce__(self) -> str:
        raise TypeError("a secret is not pickled")
