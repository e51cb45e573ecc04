"""A model of which this rank has its part, as transformers dealt it."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from engine.forward.rank_group import RankGroup

# Whole on each rank: see `engine.model.tensor_parallel`.
WHOLE = "replicate"


def dealing(model_class: Any, config: Any, group: RankGroup | None) -> dict[str, Any]:
    """What `from_pretrained` is told, so that a rank reads its part of the weights alone; nothing without a group."""
    if group is None:
        return {}
    from transformers.distributed.configuration_utils import DistributedConfig

    with torch.device("meta"):  # names alone: nothing is allocated
        empty = model_class(config)
    whole = {id(empty.get_input_embeddings()), id(empty.get_output_embeddings())}
    names = [name for name, module in empty.named_modules() if id(module) in whole]
    return {"distributed_config": DistributedConfig(tp_size=group.size, tp_plan=dict.fromkeys(names, WHOLE))}


@contextmanager
def taken_for(device: str) -> Iterator[None]:
    """Within it, transformers deals weights to devices of this kind.

    It asks torch for an accelerator, and hears of what torch was built for, be it there and be it wanted or not.
    """
    asked = torch._C._get_accelerator
    torch._C._get_accelerator = lambda *_: torch.device(torch.device(device).type)
    try:
        yield
    finally:
        torch._C._get_accelerator = asked


def keep_parts(model: Any) -> None:
    """Makes each dealt weight a plain tensor, in place: what this rank has of it.

    What transformers put around a layer's forward stays, which sums up what a layer of a part of the inputs gives. So
    does what the layer says of its whole width, which that needs.
    """
    from torch.distributed.tensor import DTensor  # a second, which those with one device need not wait

    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if isinstance(parameter, DTensor):
                module._parameters[name] = nn.Parameter(parameter.to_local(), requires_grad=False)
