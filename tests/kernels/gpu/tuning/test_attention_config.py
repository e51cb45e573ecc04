"""Choosing a configuration by the table."""

import pytest
import torch

from kernels.backend import backend_of
from kernels.gpu.tuning import device_limits
from kernels.gpu.tuning.attention_config import (
    ATTENTION,
    SAFE,
    WIDE,
    attention_candidates,
    attention_config,
)
from kernels.gpu.tuning.device_limits import LIMITS

CPU = torch.device("cpu")


def test_a_device_without_an_index_is_the_current_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    monkeypatch.setattr(device_limits, "_cuda_architecture", "sm_{}".format)
    assert device_limits.architecture(torch.device("cuda")) == "sm_3"
    assert device_limits.architecture(torch.device("cuda:0")) == "sm_0"


def test_an_unknown_device_takes_the_safe_default() -> None:
    assert attention_config(CPU, 128, 500) == SAFE
    assert attention_candidates("sm_999", 64) == (SAFE,)
    assert attention_candidates("sm_90", 512) == attention_candidates("sm_999", 512) == (WIDE,)


@pytest.mark.parametrize("arch", ATTENTION)
def test_head_sizes_between_take_the_next_larger(arch: str) -> None:
    assert attention_candidates(arch, 100) == ATTENTION[arch][128]
    assert attention_candidates(arch, 80) == ATTENTION[arch][96]
    assert attention_candidates(arch, 64) == ATTENTION[arch][64]


@pytest.mark.parametrize("arch", ATTENTION)
def test_the_table_is_ordered_and_gives_reasons(arch: str) -> None:
    assert arch in LIMITS
    for configs in ATTENTION[arch].values():
        assert [config.large for config in configs] == sorted(config.large for config in configs)
        assert all(config.reason for config in configs)


def test_the_cpu_computes_with_torch_and_a_gpu_with_triton() -> None:
    assert backend_of("cpu") == "torch"
    assert backend_of("cuda:1") == "triton"
