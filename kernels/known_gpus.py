"""What GPUs have by their makers' documents: for plans where none is at hand, and for shares of a peak."""

from dataclasses import dataclass

# Of the memory that a data sheet names, in GiB, what a process may count on: 78 GiB of an H100's 80, 139 of an H200's
# 141 are left by the driver. GDDR6 of a data centre's card keeps one bit of sixteen for error correction.
DRIVER_SHARE, ECC_SHARE = 0.98, 15 / 16


@dataclass(frozen=True, slots=True)
class KnownGpu:
    """`memory` is in GiB, `memory_bytes` a second; FLOPs (or operations, in `int8`) a second are dense ones, at most.

    `float32` is without matrix units, `bfloat16` and `fp8` are summed in float32; 0 where there are no such units.
    `capability` is NVIDIA's, above all of them for AMD's, whose units are not told apart. `driver_names` are those that
    torch gives a device.
    """

    name: str
    label: str
    capability: tuple[int, int]
    memory: float
    memory_bytes: float
    float32: float
    bfloat16: float
    fp8: float
    int8: float
    driver_names: tuple[str, ...]
    source: str
    has_inline_ecc: bool = False

    @property
    def usable_bytes(self) -> int:
        """Bytes of memory that a process may count on."""
        share = DRIVER_SHARE * (ECC_SHARE if self.has_inline_ecc else 1.0)
        return int(self.memory * share * 2**30)

    def matmul_peak(self, dtype: str, quantization: str = "none") -> float:
        """FLOPs a second of products whose activations have this precision; 4-bit weights are multiplied as `dtype`."""
        if quantization in ("fp8", "int8"):
            return self.fp8 if quantization == "fp8" else self.int8
        return self.float32 if dtype == "float32" else self.bfloat16


# Data sheets give matrix units' rates with sparsity, of which half is dense.
KNOWN_GPUS = (
    KnownGpu(
        name="a100-40gb",
        label="NVIDIA A100 40GB",
        capability=(8, 0),
        memory=40,
        memory_bytes=1.555e12,
        float32=19.5e12,
        bfloat16=312e12,
        fp8=0.0,
        int8=624e12,
        driver_names=("NVIDIA A100-SXM4-40GB", "NVIDIA A100-PCIE-40GB"),
        source="NVIDIA A100 Tensor Core GPU, data sheet",
    ),
    KnownGpu(
        name="a100-80gb",
        label="NVIDIA A100 80GB (SXM)",
        capability=(8, 0),
        memory=80,
        memory_bytes=2.039e12,
        float32=19.5e12,
        bfloat16=312e12,
        fp8=0.0,
        int8=624e12,
        driver_names=("NVIDIA A100-SXM4-80GB",),
        source="NVIDIA A100 Tensor Core GPU, data sheet",
    ),
    KnownGpu(
        name="b200",
        label="NVIDIA B200 (SXM)",
        capability=(10, 0),
        memory=180,
        memory_bytes=8e12,
        float32=75e12,
        bfloat16=2250e12,
        fp8=4500e12,
        int8=4500e12,
        driver_names=("NVIDIA B200",),
        source="NVIDIA DGX B200, data sheet, an eighth of the system's; NVIDIA Blackwell architecture technical brief",
    ),
    KnownGpu(
        name="h100",
        label="NVIDIA H100 80GB (SXM)",
        capability=(9, 0),
        memory=80,
        memory_bytes=3.35e12,
        float32=67e12,
        bfloat16=989e12,
        fp8=1979e12,
        int8=1979e12,
        driver_names=("NVIDIA H100 80GB HBM3",),
        source="NVIDIA H100 Tensor Core GPU, data sheet",
    ),
    KnownGpu(
        name="h100-pcie",
        label="NVIDIA H100 80GB (PCIe)",
        capability=(9, 0),
        memory=80,
        memory_bytes=2.0e12,
        float32=51e12,
        bfloat16=756e12,
        fp8=1513e12,
        int8=1513e12,
        driver_names=("NVIDIA H100 PCIe",),
        source="NVIDIA H100 Tensor Core GPU, data sheet",
    ),
    KnownGpu(
        name="h200",
        label="NVIDIA H200 (SXM)",
        capability=(9, 0),
        memory=141,
        memory_bytes=4.8e12,
        float32=67e12,
        bfloat16=989e12,
        fp8=1979e12,
        int8=1979e12,
        driver_names=("NVIDIA H200",),
        source="NVIDIA H200 Tensor Core GPU, data sheet",
    ),
    KnownGpu(
        name="l4",
        label="NVIDIA L4",
        capability=(8, 9),
        memory=24,
        memory_bytes=300e9,
        float32=30.3e12,
        bfloat16=121e12,
        fp8=242.5e12,
        int8=242.5e12,
        driver_names=("NVIDIA L4",),
        source="NVIDIA L4 Tensor Core GPU, data sheet",
        has_inline_ecc=True,
    ),
    KnownGpu(
        name="l40s",
        label="NVIDIA L40S",
        capability=(8, 9),
        memory=48,
        memory_bytes=864e9,
        float32=91.6e12,
        bfloat16=362e12,
        fp8=733e12,
        int8=733e12,
        driver_names=("NVIDIA L40S",),
        source="NVIDIA L40S, data sheet",
        has_inline_ecc=True,
    ),
    KnownGpu(
        name="mi300x",
        label="AMD Instinct MI300X",
        capability=(99, 0),
        memory=192,
        memory_bytes=5.3e12,
        float32=163.4e12,
        bfloat16=1307e12,
        fp8=2615e12,
        int8=2615e12,
        driver_names=("AMD Instinct MI300X",),
        source="AMD Instinct MI300X accelerator, data sheet",
    ),
    KnownGpu(
        name="rtx-4090",
        label="NVIDIA GeForce RTX 4090",
        capability=(8, 9),
        memory=24,
        memory_bytes=1.008e12,
        float32=82.6e12,
        bfloat16=165.2e12,
        fp8=330.3e12,
        int8=660.6e12,
        driver_names=("NVIDIA GeForce RTX 4090",),
        source="NVIDIA Ada GPU architecture, white paper, appendix A",
    ),
)


def known_gpu(name: str) -> KnownGpu | None:
    """The one that `--device` calls so."""
    return next((gpu for gpu in KNOWN_GPUS if gpu.name == name.lower()), None)


def gpu_at_hand(driver_name: str) -> KnownGpu | None:
    """The one that torch calls so."""
    return next((gpu for gpu in KNOWN_GPUS if driver_name in gpu.driver_names), None)
