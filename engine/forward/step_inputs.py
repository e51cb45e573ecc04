"""A step's numbers on the device: one copy, which the host does not wait for."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from engine.scheduling.scheduler_output import SchedulerOutput
from kernels.segments import Ints


@dataclass(frozen=True, slots=True, eq=False)
class StepInputs:
    """`input_ids`, `position_ids`, `slots` (rows,) and `asked_rows` (asked,), int64: views of one tensor."""

    input_ids: Tensor
    position_ids: Tensor
    slots: Tensor
    asked_rows: Tensor


def step_inputs(step: SchedulerOutput, device: str) -> StepInputs:
    rows, asked = step.num_scheduled_tokens, step.asked_rows
    columns = np.concatenate((step.input_ids, step.position_ids, step.slot_mapping, asked))
    return StepInputs(*torch.split(to_device(columns, device), [rows, rows, rows, len(asked)]))


def to_device(numbers: Ints, device: str) -> Tensor:
    """From pinned memory, which torch keeps until the copy has run."""
    if device == "cpu":
        return torch.from_numpy(numbers)
    host = torch.empty(len(numbers), dtype=torch.int64, pin_memory=True)
    host.numpy()[:] = numbers
    return host.to(device, non_blocking=True)


def to_host(made: Tensor) -> Tensor:
    """A copy in pinned memory, which is whole when an event recorded behind this has passed; on a CPU at once."""
    if not made.is_cuda:
        return made.clone()
    host = torch.empty(made.shape, dtype=made.dtype, pin_memory=True)
    return host.copy_(made, non_blocking=True)


def resolved(input_ids: Tensor, last_tokens: Tensor) -> Tensor:
    """`input_ids` with the tokens that the step before sampled (`SchedulerOutput.input_ids`), none below 0.

    A row whose logits were not finite has -1 for a token; it ends as an error, whatever it is given here.
    """
    sampled = last_tokens[(-1 - input_ids).clamp_(min=0)]
    return torch.where(input_ids < 0, sampled, input_ids).clamp_(min=0)
