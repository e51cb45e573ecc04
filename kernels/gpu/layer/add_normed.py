"""Two norms and the sum between them in one pass: what stands between a product that is normed before it is added, and
the next product.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.gpu.layer.e4m3 import row_warps
from kernels.gpu.layer.rms_norm import normed_row, rms_norm_reference
from kernels.gpu.tuning.launch import launch


@triton.jit
def add_normed_kernel(
    x_ptr,
    weight_ptr,
    residual_ptr,
    sum_ptr,
    next_weight_ptr,
    next_ptr,
    eps,
    SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
    ROUNDED: tl.constexpr,
):
    """Program i takes row i; all rows are contiguous."""
    row = tl.program_id(0).to(tl.int64)
    # [BLOCK]
    cell = tl.arange(0, BLOCK)
    mask = cell < SIZE
    offset = row * SIZE + cell
    dtype: tl.constexpr = x_ptr.dtype.element_ty
    x = tl.load(x_ptr + offset, mask=mask, other=0).to(tl.float32)
    added = normed_row(x, weight_ptr, cell, mask, eps, dtype, SIZE, ROUNDED).to(tl.float32)
    residual = tl.load(residual_ptr + offset, mask=mask, other=0).to(tl.float32)
    total = (residual + added).to(dtype)
    tl.store(sum_ptr + offset, total, mask=mask)
    normed = normed_row(total.to(tl.float32), next_weight_ptr, cell, mask, eps, dtype, SIZE, ROUNDED)
    tl.store(next_ptr + offset, normed, mask=mask)


def add_normed(
    x: Tensor,
    weight: Tensor,
    residual: Tensor,
    next_weight: Tensor,
    eps: float,
    *,
    rounded: bool = True,
) -> Tensor:
    """(2, rows, size): residual + norm(x), and the norm of that; x, residual (rows, size), contiguous, in one dtype.

    weight, next_weight (size,) are of the two norms, `rounded` as in `rms_norm`.
    """
    rows, size = x.shape
    assert x.is_contiguous(), x.stride()
    assert residual.is_contiguous(), residual.stride()
    out = torch.empty((2, rows, size), dtype=x.dtype, device=x.device)
    if rows:
        block = triton.next_power_of_2(size)
        launch(
            add_normed_kernel,
            (rows,),
            x,
            weight,
            residual,
            out[0],
            next_weight,
            out[1],
            eps,
            SIZE=size,
            BLOCK=block,
            ROUNDED=rounded,
            num_warps=row_warps(block),
        )
    return out


def add_normed_reference(
    x: Tensor, weight: Tensor, residual: Tensor, next_weight: Tensor, eps: float, *, rounded: bool = True
) -> Tensor:
    """`add_normed` by its definition."""
    total = residual + rms_norm_reference(x, weight, eps, rounded=rounded)
    return torch.stack((total, rms_norm_reference(total, next_weight, eps, rounded=rounded)))
