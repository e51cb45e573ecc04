"""What a quantization means on each device: which linear layers, how they are kept and what multiplies them."""

from dataclasses import dataclass

from engine.config import Quantization
from engine.errors import UserError
from kernels.backend import Backend


@dataclass(frozen=True, slots=True)
class LinearScheme:
    """How the linear layers below a model's head are kept and multiplied on a backend; plain data.

    `weight_bits` 0: as many as the model's dtype has. `tolerance` bounds how far the packed model's probabilities may
    be from the whole one's, on the probe's tokens. `dtypes`: those that activations may come in. `capability`: the
    least that an NVIDIA GPU must have. `engine.forward.pack_linears` packs; the `kernel` multiplies.
    """

    quantization: Quantization
    backend: Backend
    layers: str
    weights: str
    activations: str
    kernel: str
    weight_bits: int
    tolerance: float
    dtypes: tuple[str, ...] = ("float32", "bfloat16", "float16")
    capability: tuple[int, int] = (0, 0)


# In 8 bits or bfloat16, a last bit moves an activation to its next step: by 7e-2 and 5e-2 on SmolLM2-135M; weights of 4
# bits move it by 0.45. A tolerance finds linear layers that are broken; the path itself is held to
# `engine.forward.probe.TOLERANCE` while the weights have all their bits.
LINEAR_SCHEMES = (
    LinearScheme(
        quantization="none",
        backend="torch",
        layers="none; fused families are packed as they are",
        weights="the dtype's",
        activations="the dtype's, sums in float32",
        kernel="kernels.cpu.matmul.matmul.matmul",
        weight_bits=0,
        tolerance=0.25,
    ),
    LinearScheme(
        quantization="none",
        backend="triton",
        layers="none",
        weights="the dtype's",
        activations="the dtype's",
        kernel="torch.nn.functional.linear",
        weight_bits=0,
        tolerance=0.25,
    ),
    LinearScheme(
        quantization="int8",
        backend="torch",
        layers="all of the body",
        weights="8 bits, a scale an output channel",
        activations="8 bits, a scale a row; smoothed, then through a Hadamard transform",
        kernel="kernels.cpu.matmul.matmul.matmul",
        weight_bits=8,
        tolerance=0.25,
    ),
    LinearScheme(
        quantization="int8",
        backend="triton",
        layers="those of the body with a multiple of 32 inputs, no more than the model is wide: not the MLP's way back",
        weights="8 bits, a scale an output channel and a group of inputs",
        activations="8 bits, a scale a row and a group of inputs; smoothed",
        kernel="kernels.gpu.matmul.quantized_matmul.matmul_w8a8",
        weight_bits=8,
        tolerance=0.25,
    ),
    LinearScheme(
        quantization="int4",
        backend="triton",
        layers="all of the body with a multiple of 32 inputs",
        weights="4 bits, a scale an output channel and a group of inputs",
        activations="the dtype's",
        kernel="kernels.gpu.matmul.quantized_matmul.matmul_w4a16",
        weight_bits=4,
        tolerance=0.6,
    ),
    LinearScheme(
        quantization="fp8",
        backend="triton",
        layers="all of the body with a multiple of 16 inputs and outputs",
        weights="float8_e4m3fn, a scale an output channel",
        activations="float8_e4m3fn, a scale a row",
        kernel="torch._scaled_mm",
        weight_bits=8,
        tolerance=0.25,
        dtypes=("bfloat16",),
        capability=(8, 9),
    ),
)


def linear_scheme(quantization: Quantization, backend: Backend) -> LinearScheme:
    """Raises UserError where the backend has no such scheme."""
    for scheme in LINEAR_SCHEMES:
        if (scheme.quantization, scheme.backend) == (quantization, backend):
            return scheme
    raise UserError(f"model.quantization: {quantization} is for GPUs alone; take int8, or engine.device: cuda")
