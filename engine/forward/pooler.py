"""Weighted sums of a step's hidden states, which embeddings are made of."""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from engine.forward.model_runner import ModelRunner
from engine.forward.step_inputs import to_host
from engine.scheduling.hidden_reads import DIGITS
from engine.scheduling.reads import Reads
from kernels.segments import Ints

# Rows that are in float32 at one time, whatever the model computes in.
POOLED_ROWS = 1024


@dataclass(frozen=True, slots=True, eq=False)
class PooledRows:
    """`sums`, on its way to the host: of some rows, a sum for each of `keys`, which may be there again.

    (keys, hidden_size) in float32; or, `exact`, (keys, DIGITS, hidden_size) in float64, exact.
    """

    keys: Ints
    sums: Tensor


def launch_sums(
    runner: ModelRunner, hidden: Tensor, places: Ints, reads: Reads, *, exact: bool = False
) -> list[PooledRows]:
    """What HIDDEN reads come to, whose rows are at `places` of `hidden`; those of a key follow each other."""
    made = []
    # Digits, and what they are made of, are eight times as large.
    most = max(POOLED_ROWS // 8, 1) if exact else POOLED_ROWS
    for start in range(0, len(reads), most):
        part = slice(start, start + most)
        keys, weights = reads.key[part], runner.index(reads.place[part])
        firsts = np.append(0, np.flatnonzero(np.diff(keys)) + 1)
        rows = hidden[runner.index(places[part])].float()
        rows = to_digits(rows) if exact else rows
        # A bag is summed apart from the others, in one order: a row that is not finite is its own node's alone.
        sums = F.embedding_bag(
            runner.index(np.arange(len(keys))),
            rows,
            runner.index(firsts),
            mode="sum",
            per_sample_weights=weights.to(rows.dtype),
        )
        sums = sums.view(len(firsts), len(DIGITS), -1) if exact else sums
        made.append(PooledRows(keys[firsts], to_host(sums)))
    return made


def to_digits(rows: Tensor) -> Tensor:
    """(rows, hidden_size) to (rows, DIGITS * hidden_size) in float64: whole numbers of `DIGITS` steps."""
    rest, digits = rows.double(), []
    for step in DIGITS:
        digits.append((rest / step).round())
        rest = rest - digits[-1] * step
    return torch.cat(digits, dim=1)
