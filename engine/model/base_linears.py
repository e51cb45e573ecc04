"""The linear layers of a model, by path and size, without its weights: what an adapter is held to."""

import re
from functools import lru_cache
from typing import Any

from engine.model.adapter_config import AdapterError
from engine.model.adapter_files import AdapterFiles
from engine.model.checkpoint import ModelFiles, tokenizer_folder

# The layers of a mixture's experts see some of a step's rows.
_EXPERTS = re.compile(r"(^|\.)experts\.")


def hold_to_base(adapter: AdapterFiles, model: ModelFiles) -> None:
    """Raises AdapterError for an adapter that was made for another model, or adapts what no adapter may here."""
    linears, head = linear_sizes(model)
    for target in adapter.targets:
        if target.path == head:
            raise AdapterError(f"adapts the head ({head}), which is not served")
        if _EXPERTS.search(target.path):
            raise AdapterError(f"adapts experts of a mixture ({target.path}), which is not served")
        found = linears.get(target.path)
        if found is None:
            raise AdapterError(f"is for another base: {model.name} has no linear layer {target.path}")
        if found != (target.inputs, target.outputs):
            theirs, ours = f"{target.inputs} to {target.outputs}", f"{found[0]} to {found[1]}"
            raise AdapterError(f"is for another base: its {target.path} is {theirs}, {model.name}'s is {ours}")


@lru_cache(maxsize=4)
def linear_sizes(model: ModelFiles) -> tuple[dict[str, tuple[int, int]], str | None]:
    """(inputs, outputs) by path, and the head's path; the model is made without memory."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.pytorch_utils import Conv1D

    config: Any = AutoConfig.from_pretrained(tokenizer_folder(model), local_files_only=True)
    config.__dict__.pop("quantization_config", None)  # layers as they are before they are packed
    with torch.device("meta"):
        made: Any = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
    sizes = {}
    for path, module in made.named_modules():
        if isinstance(module, torch.nn.Linear):
            sizes[path] = (module.in_features, module.out_features)
        elif isinstance(module, Conv1D):
            inputs, outputs = module.weight.shape
            sizes[path] = (int(inputs), int(outputs))
    head = made.get_output_embeddings()
    return sizes, next((path for path, module in made.named_modules() if module is head), None)
