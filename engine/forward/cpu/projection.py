"""Linear layers packed for `kernels.cpu.matmul`, which take the place of `nn.Linear` and `Int8Linear` on the CPU."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from engine.forward.cpu.int8_linear import Int8Linear
from engine.forward.forward_output import Chosen
from engine.machine import huge_pages
from kernels.cpu.layer.rms_norm import rms_norm
from kernels.cpu.matmul import matmul
from kernels.cpu.matmul.adapter_expand import PanelAdapters, panel_ranges
from kernels.cpu.matmul.adapter_shrink import adapter_shrink
from kernels.cpu.matmul.best_output import best_outputs, make_screen
from kernels.cpu.matmul.int8_rows import byte_rows, hadamard_rows
from kernels.paged_adapters import AdapterRuns

Linear = nn.Linear | Int8Linear


def can_pack(layer: Any) -> bool:
    """Whether `Projection` takes it here."""
    if not isinstance(layer, Linear) or layer.weight.device.type != "cpu":
        return False
    whole_words = layer.weight.dtype == torch.int8 or layer.weight.shape[1] * layer.weight.dtype.itemsize % 4 == 0
    return whole_words and matmul.available(layer.weight.dtype)


class Projection(nn.Module):
    """One or more linear layers of one input, their outputs side by side; its weights are in large pages.

    Products are exact or in float32, whatever the weights' dtype. `in_order`: a row's are the same to the last bit
    beside any others. `takes` is the dtype that rows come in. `site` is the
    number of its first layer among the places where adapters may add something; those of the others follow.
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
        site: int = 0,
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
        self.num_weights = weight.numel()
        self.site = site
        self.in_order = False
        self._ranges = panel_ranges([len(layer.weight) for layer in layers], gated=gated)

    @property
    def num_adapter_loops(self) -> int:
        """Calls of loops that adapters add: a product, and a norm where rows are not what they take."""
        return 2 if self.factors is not None and self.eps is not None else 1

    def into(self, rows: Tensor, out: Tensor, *, add: bool = False, adapters: AdapterRuns | None = None) -> Tensor:
        """out (n, out_features) in float32 = the layers of rows (n, in_features); `add`: out +=.

        What `adapters` make of the rows is added: of rows that have all their bits, whatever the weights are.
        """
        scales = added = None
        if self.factors is not None:
            if adapters is not None:
                added = self._added(self._plain(rows), adapters)
            width, dtype = -(self.in_features // -4) * 4, matmul.rows_dtype(torch.int8)
            if dtype == torch.float32:
                room = self.workspace.rows("transformed", len(rows), width, dtype)
                rows = hadamard_rows(rows, self.factors, self.eps, room)
                return matmul.matmul(rows, self.panels, out, add=add, in_order=self.in_order, adapters=added)
            made = self.workspace.rows("bytes", len(rows), width, torch.uint8)
            scales = self.workspace.rows("scales", len(rows), 1, torch.float32)[:, 0]
            rows, scales = byte_rows(rows, self.factors, self.eps, (made, scales))
        elif self.norm_weight is not None:
            assert self.eps is not None
            normed = self.workspace.rows("normed", len(rows), self.in_features, matmul.rows_dtype(self.panels.dtype))
            rows = rms_norm(rows, self.norm_weight, self.eps, normed)
        if adapters is not None and added is None:
            added = self._added(rows, adapters)
        how = {"add": add, "in_order": self.in_order}
        return matmul.matmul(rows, self.panels, out, **how, row_scales=scales, adapters=added)

    def _plain(self, rows: Tensor) -> Tensor:
        """Rows as layers without quantization would take them, in float32."""
        if self.eps is None:
            return rows
        assert self.norm_weight is not None
        room = self.workspace.rows("plain", len(rows), self.in_features, torch.float32)
        return rms_norm(rows, self.norm_weight, self.eps, room)

    def _added(self, rows: Tensor, runs: AdapterRuns) -> PanelAdapters:
        """What the product is to add of adapters, whose first half is made of `rows` here."""
        sites = len(self._ranges)
        room = self.workspace.rows("shrunk", len(rows), sites * runs.rank, torch.float32)
        shrunk = adapter_shrink(rows, runs, self.site, sites, room)
        return PanelAdapters(runs, shrunk, self.site, self._ranges)

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

    def best(self, rows: Tensor, told: Tensor | None = None) -> Chosen:
        """Of (n, in_features) in any dtype: the greatest output's number, -1 where the row is not finite, and by how
        much it is ahead where that is less than `told` (n,), else that at least.
        """
        assert self.screen is not None
        told = torch.full((len(rows),), torch.inf) if told is None else told
        return Chosen(*best_outputs(rows.to(self.panels.dtype).contiguous(), self.screen, told))


def pack_head(model: Any, dtype: torch.dtype) -> None:
    """The head's weights in `dtype`, its logits in float32."""
    head = model.get_output_embeddings()
    if type(head) is nn.Linear and can_pack(head):
        model.set_output_embeddings(Head(head, dtype))
