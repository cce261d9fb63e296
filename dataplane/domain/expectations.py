"""How many tokens a model's answers have: what soft budgets reserve.

A histogram per model, in memory, of the answers that this process has seen. Old answers fade: when a
model has been counted often enough, all its counts are halved.
"""

import math
from collections import OrderedDict
from typing import Final

# What is expected of a model that was not seen often enough to tell: a page of text.
UNSEEN_TOKENS: Final = 512
_SEEN_ENOUGH: Final = 20
_FADE_AT: Final = 2_000
_PERCENTILE: Final = 0.95
# Four steps a doubling: what is reserved is at most a fifth above the percentile.
_STEPS_A_DOUBLING: Final = 4
_STEPS: Final = 25 * _STEPS_A_DOUBLING
# Callers choose names of models where a rule allows any.
_MAX_MODELS: Final = 1_000


class OutputExpectations:
    """The 95th percentile of the output of each model."""

    def __init__(self) -> None:
        self._counts: OrderedDict[str, list[int]] = OrderedDict()

    def note(self, model: str, output_tokens: int) -> None:
        """Count an answer of `output_tokens`; answers of nothing say nothing."""
        if output_tokens <= 0:
            return
        counts = self._counts.get(model)
        if counts is None:
            if len(self._counts) >= _MAX_MODELS:
                self._counts.popitem(last=False)
            counts = self._counts[model] = [0] * _STEPS
        else:
            self._counts.move_to_end(model)
        counts[_step_of(output_tokens)] += 1
        if sum(counts) >= _FADE_AT:
            self._counts[model] = [count // 2 for count in counts]

    def output_tokens(self, model: str) -> int:
        """Return how many tokens 95 of 100 answers of `model` do not exceed."""
        counts = self._counts.get(model)
        seen = sum(counts) if counts is not None else 0
        if counts is None or seen < _SEEN_ENOUGH:
            return UNSEEN_TOKENS
        wanted = math.ceil(seen * _PERCENTILE)
        for step, count in enumerate(counts):
            wanted -= count
            if wanted <= 0:
                return _end_of(step)
        return _end_of(_STEPS - 1)


def _step_of(tokens: int) -> int:
    """Return the step whose end is the first that is not below `tokens`."""
    return min(_STEPS - 1, max(0, math.ceil(_STEPS_A_DOUBLING * math.log2(tokens))))


def _end_of(step: int) -> int:
    return math.ceil(2 ** (step / _STEPS_A_DOUBLING))
