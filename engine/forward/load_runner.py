"""From a model's files to what runs steps on it: what each rank of an engine does at once."""

import torch

from engine.config import EngineConfig
from engine.forward.load import load_model
from engine.forward.model_runner import ModelRunner
from engine.forward.rank_group import RankGroup
from engine.forward.warm_up import warm_up
from engine.machine.device import Device
from engine.machine.huge_pages import leave_files
from engine.model.checkpoint import ModelFiles


def load_runner(model: ModelFiles, config: EngineConfig, device: Device, group: RankGroup | None = None) -> ModelRunner:
    """In the thread that is to run the steps. `config` has a number for `kv_cache_memory`.

    Raises UserError for a model that cannot be served. Ranks but the first keep no head.
    """
    if device.name == "cpu":
        torch.set_num_threads(device.cores)
    else:
        torch.cuda.set_device(device.name)  # this thread's: kernels are launched there, wherever their tensors are
    strict = config.determinism == "strict"
    loaded = load_model(model, device, config.quantization, config.kv_cache_dtype, strict=strict, group=group)
    leave_files([loaded.body])
    runner = ModelRunner(loaded, config, device)
    if device.backend == "triton":
        warm_up(runner, config.max_num_batched_tokens or device.step_tokens)
    if group is not None and not group.leads:
        loaded.forget_head()
    return runner
