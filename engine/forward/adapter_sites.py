"""The places in a loaded model where an adapter may add something: one for each linear layer of its body."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers.pytorch_utils import Conv1D

from engine.forward.loaded_model import LoadedModel


@dataclass(frozen=True, slots=True, eq=False)
class AdapterSite:
    """`column`: where in a panel of outputs the first one lies.

    `module` is the layer, whose output is added to behind it; None where a fused layer adds for itself.
    """

    number: int
    column: int = 0
    module: nn.Module | None = None


def adapter_sites(model: LoadedModel) -> Mapping[str, AdapterSite]:
    """By path, as PEFT calls the layer."""
    layers: Any = getattr(model.body, "layers", ())
    if len(layers) and hasattr(layers[0], "adapter_sites"):
        return {
            f"{model.prefix}.layers.{index}.{path}": AdapterSite(index * len(layer.adapter_sites) + place, column)
            for index, layer in enumerate(layers)
            for place, (path, column) in enumerate(layer.adapter_sites)
        }
    found = [(path, module) for path, module in model.body.named_modules() if _is_linear(module)]
    return {f"{model.prefix}.{path}": AdapterSite(number, 0, module) for number, (path, module) in enumerate(found)}


def _is_linear(module: Any) -> bool:
    """Packed layers too, which say their sizes as `nn.Linear` does."""
    return isinstance(module, Conv1D) or (hasattr(module, "in_features") and hasattr(module, "out_features"))
