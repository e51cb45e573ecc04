"""Puts an engine together: device, weights, KV cache, tokenizer."""

import torch

from engine.config import EngineConfig
from engine.device import resolve_device
from engine.engine import Engine
from engine.load import load_model
from engine.model import ModelFiles
from engine.model_runner import ModelRunner
from engine.tokenizer import load_tokenizer


def build_engine(model: ModelFiles, config: EngineConfig, *, detokenize: bool = True) -> Engine:
    """Raises UserError for a model or device that cannot be served."""
    device = resolve_device(config)
    if device.name == "cpu":
        torch.set_num_threads(device.cores)
    runner = ModelRunner(load_model(model, device), config, device)
    return Engine(runner, config, load_tokenizer(model) if detokenize else None)
