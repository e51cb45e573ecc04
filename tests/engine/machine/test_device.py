"""Which GPUs are taken, where one is as good as there."""

import pytest
import torch

from engine.config import EngineConfig
from engine.errors import UserError
from engine.machine import device
from engine.machine.device import refuse_old, resolve_device


@pytest.mark.parametrize("capability", [(7, 5), (8, 0)], ids=["T4", "A100"])
def test_a_gpu_that_kernels_cannot_be_compiled_for_is_refused(
    capability: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before anything is loaded, as a compiler's error would name no key; a run that resolves it asks no driver."""
    monkeypatch.setattr(device, "cuda_devices", lambda: 1)
    monkeypatch.setattr(device, "backend_of", lambda _: "triton")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: pytest.fail("it was asked"))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "A card")
    card = resolve_device(EngineConfig(device="cuda"))
    assert card.dtype == "bfloat16"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    if capability >= (8, 0):
        refuse_old(card)
    else:
        with pytest.raises(UserError, match=r"engine.device: A card has capability 7\.5, kernels need 8\.0; take cpu"):
            refuse_old(card)
