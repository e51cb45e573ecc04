"""Steps that answers take yet, of rows that decode together: as many as do now, and at the end ever fewer."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from engine.scheduling.answer_lengths import AnswerLengths

# Of answers that go on as many stand for all: more would tell little and take long.
MOST_AGES = 64


def decode_steps_left(
    lengths: AnswerLengths, going: Sequence[int], waiting: float, most: int, engines: int = 1
) -> float:
    """Steps of all `engines` until `waiting` answers have begun where others end, and then all have ended.

    Answers that go on have `going` tokens so far, and each may have `most`. While others wait, as many decode as do
    now, so that steps are tokens over rows. When the last has begun, answers are as old as those of any moment are, if
    one follows the other: what is left of one has the survival function sum(S[t:]) / sum(S) of renewal theory (Cox,
    Renewal Theory, 1962), and the end comes with the longest of them.
    """
    survival = np.append(lengths.going_on(most), 0.0)  # [t]: the part that has more than t tokens
    if not going:
        return float(survival.sum()) if waiting > 0 else 0.0
    if waiting <= 0:
        return engines * _longest(survival, going, engines)
    left = np.cumsum(survival[::-1])[::-1] / survival.sum()  # [t]: the part that gets more than t yet
    rows = len(going) / engines
    tokens = (waiting * lengths.mean(most) + lengths.tokens_left(going, most)) / engines
    before_the_end = max(tokens / rows - float(left.sum()), 0.0)
    return engines * (before_the_end + float((1.0 - (1.0 - left) ** rows).sum()))


def _longest(survival: NDArray[np.float64], going: Sequence[int], engines: int) -> float:
    """The mean of the longest that is left on an engine, of answers that have `going` tokens so far on all of them."""
    ages = np.sort(np.minimum(np.array(going, dtype=np.int64), len(survival) - 2))
    chosen = ages[np.linspace(0, len(ages) - 1, min(len(ages), MOST_AGES)).round().astype(np.int64)]
    each = len(ages) / len(chosen) / engines
    all_ended = np.ones(len(survival))
    for age in chosen.tolist():
        # An answer that is longer than any that was seen has a token more.
        going_on = survival[age:] / survival[age] if survival[age] > 0 else np.ones(1)
        all_ended[: len(going_on)] *= (1.0 - going_on) ** each
    return float((1.0 - all_ended).sum())
