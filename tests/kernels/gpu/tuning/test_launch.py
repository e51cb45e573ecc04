"""Kernels compiled before anything runs, several at a time, with a word after each."""

import json
import os
import subprocess
import sys
import threading
from contextvars import copy_context
from pathlib import Path
from typing import Any

import pytest
from triton.runtime import _async_compile

from kernels.gpu.tuning.launch import compile_only, launch

ROOT = Path(__file__).parents[4]


class Kernel:
    """Compiles as Triton's do: by arguments, in the mode that is active."""

    def __init__(self, compile_one: Any = lambda: None) -> None:
        self.ran: list[tuple[int, ...]] = []
        self.compile_one = compile_one

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        return lambda *arguments, **_: self.ran.append(arguments)

    def warmup(self, *arguments: int, grid: tuple[int, ...], **options: int) -> None:
        mode: Any = _async_compile.active_mode.get()
        mode.submit((id(self), arguments), self.compile_one, lambda _: None)


def test_what_is_compiled_only_does_not_run() -> None:
    kernel, told = Kernel(), []
    with compile_only(lambda *counts: told.append(counts), workers=1):
        for size in (16, 32, 16):
            launch(kernel, (1,), size, num_warps=4)
        assert kernel.ran == []
    assert told == [(1, 2), (2, 2)]
    launch(kernel, (1,), 16, num_warps=4)
    assert kernel.ran == [(16,)]


def test_kernels_are_compiled_side_by_side() -> None:
    """Each waits until another is being compiled as well."""
    both = threading.Barrier(2, timeout=20)
    with compile_only(lambda *_: None, workers=2):
        for size in (16, 32):
            launch(Kernel(both.wait), (1,), size)


def test_what_cannot_be_compiled_is_said_and_launches_run_again() -> None:
    def refuse() -> None:
        raise ValueError("no such instruction")

    kernel = Kernel(refuse)

    def refused() -> None:
        with compile_only(lambda *_: None, workers=1):
            launch(kernel, (1,), 16)

    with pytest.raises(ValueError, match="no such instruction"):
        copy_context().run(refused)  # Triton leaves its mode behind where a kernel cannot be compiled
    launch(kernel, (1,), 16)
    assert kernel.ran == [(16,)]


# A device that is described and not there: all but running works as on an H100.
COMPILE = """
import json, sys, torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

class Described:
    get_current_device = staticmethod(lambda: 0)
    get_current_stream = staticmethod(lambda device: 0)
    get_current_target = staticmethod(lambda: GPUTarget("cuda", 90, 32))
    get_device_properties = staticmethod(lambda device: {})

driver.set_active(Described())
from kernels.gpu.layer.rms_norm import rms_norm
from kernels.gpu.layer.gate import gated
from kernels.gpu.tuning.launch import compile_only
told = []
with compile_only(lambda *counts: told.append(counts), workers=2):
    for rows in (1, 3):
        rms_norm(torch.zeros(rows, 64), torch.zeros(64), 1e-6)
        gated(torch.zeros(rows, 128), "silu")
print(json.dumps(told))
"""


def test_a_launch_compiles_for_the_device_in_the_form_that_it_would_run(tmp_path: Path) -> None:
    """Two kernels whatever the rows, kept where the next process finds them."""
    kept = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", COMPILE],
        env=kept | {"TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(ROOT)},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [[1, 2], [2, 2]]
    assert {path.name for path in tmp_path.rglob("*.cubin")} == {"rms_norm_kernel.cubin", "gate_kernel.cubin"}
