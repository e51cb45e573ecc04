"""Linear layers packed for `kernels.cpu.matmul`, which take the place of `nn.Linear` and `Int8Linear` on the CPU."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from engine.forward.cpu.int8_linear import Int8Linear
from engine.machine import huge_pages
from kernels.cpu.layer.rms_norm import rms_norm
from kernels.cpu.matmul import matmul
from kernels.cpu.matmul.best_output import best_outputs, make_screen
from kernels.cpu.matmul.int8_rows import byte_rows, hadamard_rows

Linear = nn.Linear | Int8Linear


def can_pack(layer: Any) -> bool:
    """Whether `Projection` takes it here."""
    if not isinstance(layer, Linear) or layer.weight.device.type != "cpu":
        return False
    whole_words = layer.weight.dtype == torch.int8 or layer.in_features * layer.weight.dtype.itemsize % 4 == 0
    return whole_words and matmul.available(layer.weight.dtype)


class Projection(nn.Module):
    """One or more linear layers of one input, their outputs side by side; its weights are in large pages.

    Products are exact or in float32, whatever the weights' dtype. `takes` is the dtype that rows come in.
    """

    factors: Tensor | None
    norm_weight: Tensor | None

    def __init__(
        self,
        *layers: Linear,
        gated: bool = False,
        norm: Any = None,
        dtype: torch.dtype | None = None,
        workspace: huge_pages.Workspace | None = None,
    ) -> None:
        """`gated`: of two layers, the gate and the up of a gated MLP; what comes out is silu(gate) * up.

        `norm`: a module of root-mean-square norm, through which rows go first. `dtype` is the weights', if it is to be
        another than they have. `workspace` is where rows are put that were normed or rounded.
        """
        super().__init__()
        self.workspace = workspace or huge_pages.Workspace()
        biases = [layer.bias for layer in layers if layer.bias is not None]
        assert len(biases) in (0, len(layers)), len(biases)
        weight = torch.cat([layer.weight.detach() for layer in layers])
        weight = weight if dtype is None else weight.to(dtype)
        bias = torch.cat([bias.detach() for bias in biases]) if biases else None
        quantized = [layer for layer in layers if isinstance(layer, Int8Linear)]
        assert len(quantized) in (0, len(layers)), len(quantized)
        scales = torch.cat([layer.weight_scales for layer in quantized]) if quantized else None
        panels = matmul.pack(weight, gated=gated, bias=bias, scales=scales)
        self.panels = replace(panels, words=huge_pages.moved(panels.words))
        for name in ("words", "bias", "scales", "offsets"):
            self.register_buffer(name, getattr(self.panels, name))
        assert all(torch.equal(layer.factors, quantized[0].factors) for layer in quantized)
        factors = quantized[0].factors if quantized else None
        if factors is not None and norm is not None:
            factors = factors * norm.weight.detach().float()
        self.register_buffer("factors", factors)
        self.register_buffer("norm_weight", None if norm is None else norm.weight.detach().float())
        self.eps: float | None = None if norm is None else norm.variance_epsilon
        self.takes = torch.float32 if quantized or norm is not None else matmul.rows_dtype(weight.dtype)
        self.in_features = weight.shape[1]
        self.out_features = len(weight) // (2 if gated else 1)

    def into(self, rows: Tensor, out: Tensor, *, add: bool = False) -> Tensor:
        """out (n, out_features) in float32 = the layers of rows (n, in_features); `add`: out +=."""
        scales = None
        if self.factors is not None:
            width, dtype = -(self.in_features // -4) * 4, matmul.rows_dtype(torch.int8)
            if dtype == torch.float32:
                room = self.workspace.rows("transformed", len(rows), width, dtype)
                rows = hadamard_rows(rows, self.factors, self.eps, room)
                return matmul.matmul(rows, self.panels, out, add=add)
            made = self.workspace.rows("bytes", len(rows), width, torch.uint8)
            scales = self.workspace.rows("scales", len(rows), 1, torch.float32)[:, 0]
            rows, scales = byte_rows(rows, self.factors, self.eps, (made, scales))
        elif self.norm_weight is not None:
            assert self.eps is not None
            normed = self.workspace.rows("normed", len(rows), self.in_features, matmul.rows_dtype(self.panels.dtype))
            rows = rms_norm(rows, self.norm_weight, self.eps, normed)
        return matmul.matmul(rows, self.panels, out, add=add, row_scales=scales)

    def forward(self, rows: Tensor) -> Tensor:
        """(..., in_features) in any dtype to (..., out_features) in float32."""
        flat = rows.reshape(-1, self.in_features).to(self.takes)
        out = self.into(flat, torch.empty(len(flat), self.out_features))
        return out.reshape(*rows.shape[:-1], self.out_features)


class Head(Projection):
    """The layer behind the last: its outputs are logits, of which a greedy choice reads nothing but the greatest."""

    def __init__(self, linear: nn.Linear, dtype: torch.dtype) -> None:
        super().__init__(linear, dtype=dtype)
        screen = make_screen(linear.weight.detach().to(dtype), self.panels)
        if screen is not None:
            coarse = replace(screen.coarse, words=huge_pages.moved(screen.coarse.words))
            screen = replace(screen, coarse=coarse)
            self.register_buffer("coarse", coarse.words)
        self.screen = screen

    def best(self, rows: Tensor) -> Tensor:
        """(n, in_features) in any dtype to (n,): the greatest output's number; -1 where the row is not finite."""
        assert self.screen is not None
        return best_outputs(rows.to(self.panels.dtype).contiguous(), self.screen)


def pack_head(model: Any, dtype: torch.dtype) -> None:
    """The head's weights in `dtype`, its logits in float32."""
    head = model.get_output_embeddings()
    if type(head) is nn.Linear and can_pack(head):
        model.set_output_embeddings(Head(head, dtype))
