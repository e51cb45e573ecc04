"""Fused layers on a GPU with an adapter, in Triton's interpreter, against the model with its weights merged in."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from engine.forward.adapter_pool import AdapterPool
from engine.forward.adapter_sites import adapter_sites
from engine.forward.gpu.attention import GpuStepAttention
from engine.forward.gpu.fused_layer import swap_layers
from engine.forward.kv_cache import KVCache
from engine.forward.loaded_model import LoadedModel
from engine.forward.step_inputs import step_inputs
from engine.machine.adapter_pages import GPU_COLUMNS, AdapterPages
from engine.model.adapter_files import WEIGHTS, read_adapter, weight_names
from engine.model.model_shape import ModelShape
from engine.scheduling.reads import Reads
from engine.scheduling.scheduler_output import AdapterLoad, SchedulerOutput, StepAdapters
from examples.adapters import write_adapter
from kernels.gpu.matmul.adapters import ROWS as MOST_ROWS
from kernels.kv_format import FLOAT32
from tests.engine.forward.cpu.test_fused_layer import ROWS, drawn, hidden
from tests.engine.forward.gpu.test_fused_layer import MODELS
from tests.engine.tiny_adapters import llama_linears

BLOCK, READ = 16, [0, 31]
SHAPE = ModelShape(2, 60, 6, 2, 20, 100, 300, max_model_len=512)


def merged(model: Any, folder: Path) -> None:
    """Adds an adapter's products to the weights, in place, as its definition has it."""
    weights = load_file(folder / WEIGHTS)
    for target in read_adapter(folder).targets:
        a, b = (weights[name] for name in weight_names(target))
        model.get_submodule(target.path).weight += target.scale * (b @ a)


@pytest.mark.parametrize("name", ["Llama", "Qwen3"])
def test_rows_with_an_adapter_are_the_merged_models(name: str, tmp_path: Path) -> None:
    """More rows than a program takes, and weights in blocks that lie apart."""
    folder = write_adapter(tmp_path / "poems", llama_linears(60, 120, 40, 100, 2), rank=12)
    other = drawn(*MODELS[name])
    merged(other, folder)
    wanted = hidden(other)[0]
    model = drawn(*MODELS[name])
    assert swap_layers(model)
    loaded = LoadedModel(model, SHAPE, FLOAT32)
    pages = AdapterPages("float32", words=BLOCK * 20, per_block=4, num_layers=2, columns=GPU_COLUMNS)
    found, cache = read_adapter(folder), KVCache(2, 2, BLOCK * 400, 20, FLOAT32, "cpu")
    blocks = np.random.default_rng(0).permutation(400)[: pages.blocks(found)]
    step = replace(
        SchedulerOutput.causal_rows(ROWS),
        reads=Reads.samples(np.array(READ), np.array(READ)),
        adapters=StepAdapters(np.zeros(ROWS, dtype=np.int64), (AdapterLoad(0, found.name, blocks),)),
    )
    pool = AdapterPool(cache, pages, adapter_sites(loaded), "cpu", MOST_ROWS)
    pool.change(step)
    attention = GpuStepAttention(step, step_inputs(step, "cpu"), cache)
    pool.tell(attention, step)
    rows = torch.arange(ROWS)[None]
    with torch.inference_mode():
        states = model.model(input_ids=rows * 5, position_ids=rows, use_cache=False, step_attention=attention)
    got = states.last_hidden_state[0]
    assert got.shape == (len(READ), 60)
    assert float((got - wanted[READ]).abs().max()) < 1e-4
    assert float((hidden(drawn(*MODELS[name]))[0] - wanted).abs().max()) > 0.1, "the adapter says something"
