"""What is read of a PEFT folder before any weight is, and what is refused by name."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from engine.machine.adapter_pages import AdapterPages
from engine.model.adapter_config import REASONS, AdapterError, parse_adapter_config
from engine.model.adapter_files import CONFIG, WEIGHTS, named_adapter, read_adapter
from engine.model.base_linears import hold_to_base
from engine.model.checkpoint import resolve_model
from examples.adapters import write_adapter
from tests.engine.tiny_adapters import llama_linears

TINY = llama_linears(64, 64, 32, 128, 2)
CONTENT: dict[str, Any] = {"peft_type": "LORA", "r": 8, "lora_alpha": 16, "target_modules": ["q_proj"]}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_adapter(tmp_path / "poems", TINY)


@pytest.mark.parametrize(
    ("more", "path", "rank", "scale"),
    [
        ({}, "model.layers.0.self_attn.q_proj", 8, 2.0),
        ({"use_rslora": True}, "model.layers.0.self_attn.q_proj", 8, 16 / 8**0.5),
        (
            {"rank_pattern": {"q_proj": 4}, "alpha_pattern": {"layers.0.*": 2}},
            "model.layers.0.self_attn.q_proj",
            4,
            0.5,
        ),
        ({"rank_pattern": {"q_proj": 4}}, "model.layers.0.self_attn.k_proj", 8, 2.0),
        ({"rank_pattern": {"layers.1.self_attn.q_proj": 4}}, "model.layers.11.self_attn.q_proj", 8, 2.0),
    ],
)
def test_ranks_and_scales_follow_patterns(more: dict[str, Any], path: str, rank: int, scale: float) -> None:
    config = parse_adapter_config(CONTENT | more)
    assert (config.rank_of(path), config.scale_of(path)) == (rank, pytest.approx(scale))


@pytest.mark.parametrize(
    ("targets", "adapted"),
    [
        (["q_proj"], True),
        (["layers.0.self_attn.q_proj"], True),
        (["proj"], False),
        (r".*\.q_proj", True),
        ("q_proj", False),
        ("all-linear", True),
    ],
)
def test_target_modules_as_peft_reads_them(targets: Any, adapted: bool) -> None:
    config = parse_adapter_config(CONTENT | {"target_modules": targets})
    assert config.adapts("model.layers.0.self_attn.q_proj") is adapted


@pytest.mark.parametrize("key", sorted(REASONS))
def test_what_would_be_computed_wrongly_is_refused_by_name(key: str) -> None:
    with pytest.raises(AdapterError, match="not served"):
        parse_adapter_config(CONTENT | {key: ["something"]})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"peft_type": "LOHA"}, "only LORA is served"),
        ({"bias": "all"}, "holds biases"),
        ({"task_type": "SEQ_CLS"}, "only CAUSAL_LM"),
        ({"init_lora_weights": "pissa_niter_16"}, "its training changed"),
        ({"r": "eight"}, "cannot be read"),
        ({"rank_pattern": {"(": 3}}, "no regular expression"),
    ],
)
def test_other_kinds_are_refused_by_name(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(AdapterError, match=said):
        parse_adapter_config(CONTENT | changes).rank_of("q_proj")


def test_a_fingerprint_is_of_the_content_wherever_it_lies(folder: Path, tmp_path: Path) -> None:
    found = read_adapter(folder)
    assert found.params == sum(8 * (inputs + outputs) for inputs, outputs in TINY.values())
    copied = tmp_path / "copy"
    shutil.copytree(folder, copied)
    content = json.loads((copied / CONFIG).read_text())
    (copied / CONFIG).write_text(
        json.dumps(content | {"base_model_name_or_path": "/elsewhere", "inference_mode": True})
    )
    assert read_adapter(copied).fingerprint == found.fingerprint
    (copied / CONFIG).write_text(json.dumps(content | {"lora_alpha": 1}))
    assert read_adapter(copied).fingerprint != found.fingerprint
    other = write_adapter(tmp_path / "other", TINY, seed=1)
    assert read_adapter(other).fingerprint != found.fingerprint


def test_a_folder_that_changed_is_not_taken_for_what_it_was(folder: Path) -> None:
    name = read_adapter(folder).name
    assert named_adapter(name).name == name
    write_adapter(folder, TINY, seed=5)
    with pytest.raises(AdapterError, match="is not what it was"):
        named_adapter(name)


@pytest.mark.fault(24)
def test_what_is_not_there_or_not_whole(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match=r"^is no folder; give one that PEFT saved$"):
        read_adapter(tmp_path / "nowhere")
    weights = load_file(folder / WEIGHTS)
    some = next(iter(weights))
    save_file({name: tensor for name, tensor in weights.items() if name != some}, folder / WEIGHTS)
    with pytest.raises(AdapterError, match=r"one of model\.layers\.0.* two weights alone"):
        read_adapter(folder)
    save_file(weights | {"base_model.model.lm_head.weight": torch.zeros(2, 2)}, folder / WEIGHTS)
    with pytest.raises(AdapterError, match="not a linear layer's LoRA weight"):
        read_adapter(folder)
    (folder / WEIGHTS).write_bytes(b"nothing")
    with pytest.raises(AdapterError, match="cannot be read"):
        read_adapter(folder)
    (folder / WEIGHTS).rename(folder / "adapter_model.bin")
    with pytest.raises(AdapterError, match="a pickle and is never loaded"):
        read_adapter(folder)


def test_ranks_and_targets_are_held_to_the_config(folder: Path) -> None:
    content = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps(content | {"r": 4}))
    with pytest.raises(AdapterError, match="ranks of 8 and 8"):
        read_adapter(folder)
    (folder / CONFIG).write_text(json.dumps(content | {"target_modules": ["q_proj"]}))
    with pytest.raises(AdapterError, match="target_modules leave out"):
        read_adapter(folder)


@pytest.mark.parametrize(
    ("linears", "said"),
    [
        (llama_linears(64, 64, 32, 256, 2), r"another base: its .*down_proj is 256 to 64, .*'s is 128 to 64"),
        (llama_linears(64, 64, 32, 128, 3), r"has no linear layer model\.layers\.2\."),
        ({"lm_head": (64, 100)}, "adapts the head"),
        ({"model.layers.0.mlp.experts.0.up_proj": (64, 128)}, "adapts experts"),
    ],
)
def test_an_adapter_for_another_base_is_refused(
    linears: dict[str, tuple[int, int]], said: str, tiny_model: Path, tmp_path: Path
) -> None:
    model = resolve_model(str(tiny_model))
    hold_to_base(read_adapter(write_adapter(tmp_path / "right", TINY)), model)
    with pytest.raises(AdapterError, match=said):
        hold_to_base(read_adapter(write_adapter(tmp_path / "wrong", linears)), model)


def test_blocks_are_those_of_the_fullest_layer(folder: Path) -> None:
    """Lines of 16 ranks in pages of 256 words: 16 inputs a page, and five lines of a panel of 48 outputs."""
    pages = AdapterPages("float32", words=256, per_block=4, num_layers=2, columns=48)
    found = read_adapter(folder)
    of = {target.path.rpartition(".")[2]: pages.pages_of(target) for target in found.targets}
    # 64 outputs may lie in three panels, 32 in two, 128 in four.
    assert of["q_proj"] == (4, -(3 * 16 // -5))
    assert of["k_proj"] == (4, -(2 * 16 // -5))
    assert of["down_proj"] == (8, -(3 * 16 // -5))
    assert of["up_proj"] == (4, -(4 * 16 // -5))
    layer = sum(sum(pages.pages_of(target)) for target in found.targets if ".0." in target.path)
    assert pages.blocks(found) == -(layer // -4)
    with pytest.raises(AdapterError, match=r"enlarge engine\.block_size"):
        AdapterPages("float32", words=40, per_block=4, num_layers=2, columns=48).blocks(found)
