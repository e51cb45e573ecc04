"""What a model makes of a step."""

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor


class Chosen(NamedTuple):
    """Of rows: each one's token (rows,) int64, and by how much its logit is ahead of the next best one's (rows,)."""

    tokens: Tensor
    margins: Tensor


@dataclass(frozen=True, slots=True)
class Forward:
    """Hidden states of the asked rows (asked, hidden_size), and each one's best token where it was looked for."""

    hidden: Tensor
    best: Chosen | None = None
