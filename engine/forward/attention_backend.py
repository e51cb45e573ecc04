"""Chooses the attention of a device."""

from typing import Protocol

from engine.forward.cpu.attention import CpuAttention
from engine.forward.kv_cache import KVCache
from engine.forward.step_attention import StepAttention
from engine.forward.step_inputs import StepInputs
from engine.scheduling.scheduler_output import SchedulerOutput
from kernels.backend import Backend


class AttentionBackend(Protocol):
    """Attention over one KV cache."""

    def prepare(self, step: SchedulerOutput, inputs: StepInputs) -> StepAttention:
        """The step's, for all of its layers; `inputs` are the step's numbers on the device."""


def attention_backend(backend: Backend, cache: KVCache, *, in_order: bool = False) -> AttentionBackend:
    """`in_order`: sums go by the keys' positions alone, which a CPU's can."""
    if backend == "torch":
        return CpuAttention(cache, in_order=in_order)
    assert not in_order, backend
    from engine.forward.gpu.attention import GpuAttention  # where Triton is not installed, nothing asks for it

    return GpuAttention(cache)
