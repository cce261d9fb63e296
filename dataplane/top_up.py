"""Soft budgets during a stream: what was reserved grows with the answer, or the answer ends.

A soft budget reserves what an answer probably costs. When four fifths of that have been passed on,
the reservation is doubled. A budget that has no room for that is nearly used up, and its counters
are not asked with every event: only when the reservation is all but used, then for half as much
until so much is there, and for twice as much the next time. So each of the few times that it asks
halves what is left. Where there is no room for a little either, the answer ends as if it had reached
its output cap. So a budget is passed by at most what arrives between two looks: a chunk for each
request in flight.
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
        self._step_tokens = self._reserved_tokens
        self._ask_at_tokens = self._reserved_tokens * _ASK_AT
        self._is_tight = False
        cap = admission.call.output_cap_tokens or admission.output_cap_tokens
        self._most_tokens = None if cap is None else cap * admission.call.choices

    async def has_room(self) -> bool:
        """Return whether the answer may go on; asks for more where it will need it.

        While the counters cannot be asked it may: streams in flight go on. So may an answer that the
        provider has ended already.
        """
        if self._reserved_tokens == self._most_tokens:
            return True
        measured = self._reader.measured_output_tokens()
        if measured < self._ask_at_tokens or self._reader.is_ending():
            return True
        return await self._has_grown(measured) or measured < self._reserved_tokens

    async def _has_grown(self, measured: int) -> bool:
        """Reserve more than `measured`, as much as there is room for; return whether there was any."""
        least = self._within_cap(max(measured, self._reserved_tokens) + LEAST_OUTPUT_TOKENS)
        while True:
            wanted = max(self._within_cap(self._reserved_tokens + self._step_tokens), least)
            if await self._extend(wanted):
                self._grow_to(wanted)
                return True
            self._is_tight = True
            self._step_tokens //= 2
            nearly_used = self._reserved_tokens - LEAST_OUTPUT_TOKENS
            if measured < nearly_used:
                self._ask_at_tokens = nearly_used
                return False
            if wanted == least:
                # Others may have given back some of theirs by the time that all of it is used.
                self._ask_at_tokens = self._reserved_tokens
                return False

    def _grow_to(self, tokens: int) -> None:
        self._reserved_tokens = tokens
        self._step_tokens = min(2 * max(self._step_tokens, LEAST_OUTPUT_TOKENS), tokens)
        self._ask_at_tokens = tokens - LEAST_OUTPUT_TOKENS if self._is_tight else tokens * _ASK_AT

    def _within_cap(self, tokens: int) -> int:
        return tokens if self._most_tokens is None else min(tokens, self._most_tokens)

    async def _extend(self, output_tokens: int) -> bool:
        it = self._admission
        cost = expected_cost(it.call, it.attempt.price, output_tokens)
        try:
            return await it.reservation.extend(cost)
        except LimitsUnavailable:
            return True
