"""What a model makes of a step."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Forward:
    """Hidden states of the asked rows (asked, hidden_size), and each one's best token (asked,) where it was made."""

    hidden: Tensor
    best: Tensor | None = None
