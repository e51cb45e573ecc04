"""How a prompt's hidden states become one vector."""

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

Pooling = Literal["last", "mean", "weighted"]

POOLING: tuple[str, ...] = get_args(Pooling)
# Below this length a vector is divided by it instead of by its own, as in torch.nn.functional.normalize.
_LEAST_LENGTH = 1e-12


@dataclass(frozen=True, slots=True)
class PoolingParams:
    """Which of the hidden states behind the model's last norm count for how much, and what is made of their mean.

    `last` takes the last token's alone; `mean` all alike; `weighted` those of a later token more, by its position
    counted from 1 (SGPT, arXiv 2202.08904, section 3.1.1). `dimensions` keeps the first of them (Matryoshka
    representations, arXiv 2205.13147), all if None; `normalize` then divides by the vector's length.
    """

    pooling: Pooling = "last"
    normalize: bool = True
    dimensions: int | None = None

    def embedding(self, pooled: NDArray[np.float64]) -> NDArray[np.float32]:
        """`pooled` (hidden_size,) as it was asked for."""
        kept = pooled[: self.dimensions]
        if self.normalize:
            kept = kept / max(float(np.linalg.norm(kept)), _LEAST_LENGTH)
        return kept.astype(np.float32)
