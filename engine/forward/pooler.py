"""Weighted sums of a step's hidden states, which embeddings are made of."""

from dataclasses import dataclass

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from engine.forward.model_runner import ModelRunner
from engine.forward.step_inputs import to_host
from engine.scheduling.reads import Reads
from kernels.segments import Ints

# Rows that are in float32 at one time, whatever the model computes in.
POOLED_ROWS = 1024


@dataclass(frozen=True, slots=True, eq=False)
class PooledRows:
    """`sums` (keys, hidden_size) in float32, on its way to the host: of some rows, a sum for each of `keys`, which may
    be there again.
    """

    keys: Ints
    sums: Tensor


def launch_sums(runner: ModelRunner, hidden: Tensor, places: Ints, reads: Reads) -> list[PooledRows]:
    """What HIDDEN reads come to, whose rows are at `places` of `hidden`; those of a key follow each other."""
    made = []
    for start in range(0, len(reads), POOLED_ROWS):
        part = slice(start, start + POOLED_ROWS)
        keys, weights = reads.key[part], runner.index(reads.place[part]).float()
        firsts = np.append(0, np.flatnonzero(np.diff(keys)) + 1)
        rows = hidden[runner.index(places[part])].float()
        # A bag is summed apart from the others, in one order: a row that is not finite is its own node's alone.
        sums = F.embedding_bag(
            runner.index(np.arange(len(keys))),
            rows,
            runner.index(firsts),
            mode="sum",
            per_sample_weights=weights,
        )
        made.append(PooledRows(keys[firsts], to_host(sums)))
    return made
