"""The table of schemes: each names what is there, and is what docs/models.md says."""

from importlib import import_module

import pytest

from engine.config import QUANTIZATION
from engine.errors import UserError
from engine.forward.pack_linears import PACKERS
from engine.model.linear_schemes import LINEAR_SCHEMES, LinearScheme, linear_scheme


def test_every_quantization_is_one_scheme_a_backend_with_one_packer() -> None:
    keys = [(scheme.quantization, scheme.backend) for scheme in LINEAR_SCHEMES]
    assert len(set(keys)) == len(keys)
    assert set(keys) == set(PACKERS)
    assert {quantization for quantization, _ in keys} == set(QUANTIZATION)


@pytest.mark.parametrize("scheme", LINEAR_SCHEMES, ids=lambda scheme: f"{scheme.quantization}-{scheme.backend}")
def test_the_kernel_that_is_named_is_there(scheme: LinearScheme) -> None:
    module, _, name = scheme.kernel.rpartition(".")
    assert callable(getattr(import_module(module), name))
    assert linear_scheme(scheme.quantization, scheme.backend) is scheme


@pytest.mark.parametrize("quantization", ["int4", "fp8"])
def test_the_cpu_has_no_scheme_of_a_gpu(quantization: str) -> None:
    with pytest.raises(UserError, match=f"quantization: {quantization} is for GPUs alone; take int8"):
        linear_scheme(quantization, "torch")  # type: ignore[arg-type]
