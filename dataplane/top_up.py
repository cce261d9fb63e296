"""Soft budgets during a stream: what was reserved grows with the answer, or the answer ends.

A soft budget reserves what an answer probably costs. When four fifths of that have been passed on,
the reservation is doubled; where the budget has no room for that, it grows by a little; where there
is none for that either, the answer ends as if it had reached its output cap. So a budget is passed
by at most what arrives between two looks: a chunk for each request in flight.
"""

from typing import Final

from dataplane.admissions import Admission
from dataplane.domain.estimation import LEAST_OUTPUT_TOKENS, expected_cost
from dataplane.domain.limiting import LimitsUnavailable
from dataplane.upstream.answers import StreamReader

# Of what is reserved; the rest pays for what arrives while more is asked for.
_ASK_AT: Final = 0.8


class TopUp:
    """Keeps the reservation of one streamed answer ahead of it."""

    def __init__(self, admission: Admission, reader: StreamReader) -> None:
        self._admission = admission
        self._reader = reader
        self._reserved_tokens = admission.expected_output_tokens or 0
        cap = admission.call.output_cap_tokens or admission.output_cap_tokens
        self._most_tokens = None if cap is None else cap * admission.call.choices

    async def has_room(self) -> bool:
        """Return whether the answer may go on; asks for more where it will need it.

        While the counters cannot be asked it may: streams in flight go on.
        """
        if self._reserved_tokens == self._most_tokens:
            return True
        measured = self._reader.measured_output_tokens()
        if measured < self._reserved_tokens * _ASK_AT:
            return True
        for target in (2 * self._reserved_tokens, measured + LEAST_OUTPUT_TOKENS):
            wanted = target if self._most_tokens is None else min(target, self._most_tokens)
            if wanted <= self._reserved_tokens or await self._extend(wanted):
                self._reserved_tokens = max(wanted, self._reserved_tokens)
                return True
        return measured < self._reserved_tokens

    async def _extend(self, output_tokens: int) -> bool:
        it = self._admission
        cost = expected_cost(it.call, it.attempt.price, output_tokens)
        try:
            return await it.reservation.extend(cost)
        except LimitsUnavailable:
            return True
