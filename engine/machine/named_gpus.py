"""Which GPUs the environment lets a process see."""

import os

CUDA, HIP = "CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES"


def named_gpus() -> list[str]:
    """As their names stand there; empty where all are seen. ROCm takes both variables, and its own before CUDA's."""
    named = os.environ.get(HIP) if _is_rocm() else None
    named = os.environ.get(CUDA, "") if named is None else named
    return [name.strip() for name in named.split(",") if name.strip()]


def show_gpu(name: str) -> None:
    """This process, which has not asked for a device yet, sees that one alone."""
    os.environ[CUDA] = name
    if HIP in os.environ:
        os.environ[HIP] = name


def _is_rocm() -> bool:
    if HIP not in os.environ:
        return False
    import torch

    return torch.version.hip is not None
