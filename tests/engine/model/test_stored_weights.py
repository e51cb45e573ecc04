"""Checkpoints of the hub's packed formats: read exactly, by words written by hand and by whole checkpoints."""

from pathlib import Path
from typing import Any

import pytest
import torch

from engine.errors import UserError
from engine.model.stored_weights import read_stored, stored_format
from tests.engine.model.packed_checkpoints import FORMATS, write


@pytest.mark.parametrize("name", FORMATS)
def test_a_layer_is_read_as_it_was_written(name: str, tiny_model: Path, tmp_path: Path) -> None:
    wanted = write(tiny_model, tmp_path / "packed", name)
    found = stored_format({"quantization_config": FORMATS[name][0]}, "a model")
    assert found is not None
    plain, stored = read_stored(tmp_path / "packed", found)
    assert stored.keys() == wanted.keys()
    assert not [key for key in plain if "_proj" in key]
    assert any("norm" in key for key in plain)
    for path, linear in stored.items():
        torch.testing.assert_close(linear.dense(), wanted[path].float(), rtol=0, atol=0)
        assert (linear.group_of_input is None) == ("order" not in name)


def test_words_by_hand() -> None:
    """0x76543210 holds 0 to 7 from its lowest bits on; AWQ puts the columns 0, 2, 4, 6, 1, 3, 5, 7 there."""
    word = torch.tensor([[0x76543210]], dtype=torch.int32)
    scales, ones = torch.ones(1, 1), torch.ones(1, 8)
    gptq = stored_format({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "")
    awq = stored_format({"quantization_config": {"quant_method": "awq", "bits": 4}}, "")
    assert gptq is not None
    assert awq is not None
    zeros = torch.zeros(1, 1, dtype=torch.int32)
    by_rows = gptq.read({"qweight": word, "qzeros": zeros, "scales": scales})
    assert by_rows.codes.tolist() == [[0, 1, 2, 3, 4, 5, 6, 7]]
    assert by_rows.zeros is not None
    assert by_rows.zeros[0, 0] == 1
    by_columns = awq.read({"qweight": word, "qzeros": zeros, "scales": ones})
    assert by_columns.codes[:, 0].tolist() == [0, 4, 1, 5, 2, 6, 3, 7]


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"quant_method": "bitsandbytes"}, "weights of bitsandbytes; served are awq, compressed-tensors, gptq"),
        ({"quant_method": "gptq", "bits": 3}, "gptq weights of 3 bits"),
        ({"quant_method": "awq", "bits": 4, "version": "gemv"}, "awq weights in the layout gemv"),
        (
            {
                "quant_method": "compressed-tensors",
                "format": "nvfp4-pack-quantized",
                "config_groups": {"group_0": {"weights": {"num_bits": 4, "type": "float"}}},
            },
            "compressed-tensors weights in the layout nvfp4-pack-quantized with 4 bits",
        ),
        (
            {"quant_method": "compressed-tensors", "config_groups": {}},
            "compressed-tensors weights in 0 groups of layers",
        ),
    ],
    ids=["unknown", "bits", "layout", "nvfp4", "nothing"],
)
def test_what_is_not_served_is_named(config: dict[str, Any], reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        stored_format({"quantization_config": config}, "model.path: some (llama) ")


def test_plain_weights_have_no_format() -> None:
    assert stored_format({"model_type": "llama"}, "") is None
