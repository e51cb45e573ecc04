"""What a device sustains: plain data, which a cost model prices work by."""

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class DeviceRates:
    """A second's FLOPs in matmuls and in attention, and bytes read from memory, within a whole forward pass.

    Bytes are without limit where nothing is known of them.
    """

    matmul_flops: float
    attention_flops: float
    memory_bytes: float = math.inf
