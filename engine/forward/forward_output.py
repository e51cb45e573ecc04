"""What a model makes of a step."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from torch import Tensor

from kernels.segments import Ints


class Chosen(NamedTuple):
    """Of rows: each one's token (rows,) int64, and by how much its logit is ahead of the next best one's (rows,)."""

    tokens: Tensor
    margins: Tensor


@dataclass(frozen=True, slots=True)
class Forward:
    """Hidden states of the asked rows (asked, hidden_size), and each one's best token where it was looked for."""

    hidden: Tensor
    best: Chosen | None = None


def are_all(places: Ints, count: int) -> bool:
    """Whether these are all of `count` rows, each once and in order: several samples may be of one row."""
    return np.array_equal(places, np.arange(count))
