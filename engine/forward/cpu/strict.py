"""`determinism: strict` on the CPU: a row's logits are the same to the last bit, whatever else is computed with them.

What decides a last bit is the order in which a sum is made. Our own loops sum a row's products input by input, on any
thread, beside any rows; what is left is to add a product whole (`kernels.cpu.matmul.matmul`), to attend by position
(`kernels.cpu.attention.ordered_attention`) and to leave no product to torch, whose libraries choose an order by the
number of rows and threads (He et al., Defeating Nondeterminism in LLM Inference, Thinking Machines, 2025).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from engine.errors import UserError
from engine.forward.attention_backend import attention_backend
from engine.forward.cpu.int8_linear import Int8Linear
from engine.forward.cpu.projection import Projection, can_pack
from engine.forward.kv_cache import KVCache
from engine.forward.loaded_model import LoadedModel
from engine.forward.step_inputs import step_inputs
from engine.machine.device import Device
from engine.scheduling.reads import Reads
from engine.scheduling.scheduler_output import SchedulerOutput
from kernels.cpu.attention.ordered_attention import LOOP
from kernels.processor import PROCESSOR
from kernels.segments import Segment, Segments

KEY = "engine.determinism: strict"
# The tokens that a model is held to its bits with, and the steps that they are then cut into.
ROWS, CUTS = 24, (0, 1, 3, 8, 24)


def refuse_strict(device: Device) -> None:
    """Raises UserError where sums cannot be kept in order."""
    if device.backend != "torch":
        raise UserError(f"{KEY} is for the CPU alone; take engine.device: cpu, or default")
    if device.dtype == "float16":
        raise UserError(f"{KEY} has no loops for float16; take model.dtype: float32 or bfloat16, or default")
    if not PROCESSOR.fuses:
        raise UserError(f"{KEY} needs a processor that multiplies and adds at once (FMA); take default")
    if not LOOP.available:
        raise UserError(f"{KEY} needs compiled loops: `python -m kernels.cpu.compile_loops` says why there are none")


@contextmanager
def one_thread() -> Iterator[None]:
    """Within it torch's sums do not follow from how many threads there are."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def put_in_order(model: Any) -> None:
    """Makes a packed model's products in order, in place; layers that are still torch's are packed first.

    Raises UserError for one that cannot be: another kind of linear layer, or weights of experts in one tensor.
    """
    for path, module in list(model.named_modules()):
        if isinstance(module, Projection):
            module.in_order = True
        elif isinstance(module, nn.Linear | Int8Linear) and can_pack(module):
            model.set_submodule(path, OrderedLinear(module))
        elif not isinstance(module, nn.Embedding) and any(p.dim() > 1 for p in module.parameters(recurse=False)):
            raise UserError(f"{KEY} has no loop for {path}, a {type(module).__name__}; take default")


class OrderedLinear(nn.Module):
    """A linear layer of transformers' own code, whose rows do not see each other."""

    def __init__(self, linear: nn.Linear | Int8Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.projection = Projection(linear)
        self.projection.in_order = True

    def forward(self, rows: Tensor) -> Tensor:
        """(..., in_features) to (..., out_features), in the dtype that comes in."""
        out: Tensor = self.projection(rows)
        return out.to(rows.dtype)


@torch.inference_mode()
def hold_to_its_bits(loaded: LoadedModel, kind: str) -> None:
    """Raises UserError where tokens that come in several steps have other logits than those that come in one.

    What is torch's in layers that are not ours (norms, activations) goes row by row as a rule; this holds it to that.
    """
    whole, cut = _logits(loaded, (0, ROWS)), _logits(loaded, CUTS)
    with one_thread():
        slow = _logits(loaded, CUTS)
    if not torch.equal(whole, cut) or not torch.equal(whole, slow):
        worst = float((whole - cut).abs().max())
        raise UserError(f"{KEY}: {kind} computes tokens otherwise beside others (by {worst:.1e}); take default")


def _logits(loaded: LoadedModel, cuts: tuple[int, ...]) -> Tensor:
    """(ROWS, vocab_size): of tokens whose steps begin and end at `cuts`."""
    shape = loaded.shape
    sizes = (shape.num_layers, shape.num_kv_heads, ROWS, shape.head_dim)
    cache = KVCache(*sizes, loaded.kv_format, "cpu", loaded.kv_scales)
    backend, made = attention_backend("torch", cache, in_order=True), []
    tokens = (np.arange(ROWS) * 7 + shape.vocab_size // 3) % shape.vocab_size
    for first, last in pairwise(cuts):
        rows, places = np.arange(last - first), np.arange(first, last)
        segments = Segments.of([Segment(0, last - first, 0, last, 0)])
        step = SchedulerOutput(tokens[places], places, places, segments, Reads.samples(rows, rows), len(rows), 0, 0)
        inputs = step_inputs(step, "cpu")
        hidden = loaded.hidden(inputs.input_ids, inputs.position_ids, backend.prepare(step, inputs))
        made.append(loaded.logits(hidden))
    return torch.cat(made)
