"""Which choices of a streamed answer are still being written."""

from collections.abc import Sequence


class OpenChoices:
    """The choices of one stream, by their indices, as its chunks tell of them.

    Args:
        choices: How many the caller asked for; of more than these nothing is kept.
    """

    def __init__(self, choices: int) -> None:
        self._choices = choices
        self._has_ended: dict[int, bool] = {}
        self._went_on: set[int] = set()

    @property
    def have_all_ended(self) -> bool:
        """Whether each one that was asked for has come, and to its end."""
        return len(self._has_ended) == self._choices and not self._open()

    def note(self, index: int, *, has_text: bool, is_end: bool) -> None:
        """Take what a chunk says of the choice `index`.

        One that is written on after its end did not end there, nor where it says so again.
        """
        if index not in self._has_ended and len(self._has_ended) == self._choices:
            return
        had_ended = self._has_ended.get(index, False)
        if had_ended and has_text:
            self._went_on.add(index)
        self._has_ended[index] = had_ended or is_end

    def still_open(self) -> Sequence[int]:
        """Return those that have begun and not ended; where there are none, those yet to begin."""
        awaited = [index for index in range(self._choices) if index not in self._has_ended]
        return self._open() or awaited

    def _open(self) -> list[int]:
        return sorted(
            index
            for index, has_ended in self._has_ended.items()
            if not has_ended or index in self._went_on
        )
