"""What the compilers make of a kernel, with no device at hand: registers, spills, shared memory, matrix instructions.

    python -m kernels.compile_report [sm_80 sm_90 gfx942]

prints a Markdown table of every configuration in `kernels.tuning`, with the occupancy that follows.
"""

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import triton
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from kernels.prefix_attention_triton import attend_kernel
from kernels.tuning import ATTENTION, LIMITS, AttentionConfig

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
# Matrix instructions by architecture; a wide tile must use the first of them.
MATRIX = {"sm_80": ("mma.sync",), "sm_90": ("wgmma.mma_async", "mma.sync"), "gfx942": ("v_mfma",)}


@dataclass(frozen=True, slots=True)
class Compiled:
    """`registers` a thread; `spilled` bytes of local memory a thread; `shared` bytes; `matrix` counts by name."""

    registers: int
    spilled: int
    shared: int
    matrix: dict[str, int]

    def programs_a_processor(self, arch: str, num_warps: int) -> int:
        """As many as registers, shared memory and warps allow. Registers are handed out by 8 a thread."""
        limits = LIMITS[arch]
        threads = num_warps * limits.warp_size
        by_registers = limits.registers // (-(-self.registers // 8) * 8 * threads)
        by_shared = limits.shared_processor // max(self.shared, 1)
        return min(by_registers, by_shared, limits.warps // num_warps)


def compile_for(
    arch: str, kernel: Any, types: Mapping[str, str], constants: Mapping[str, Any], num_warps: int, num_stages: int
) -> Compiled:
    """`types` of the arguments that are not constants, as Triton writes them (`*bf16`, `i32`, `fp32`).

    Pointers and strides are taken to be multiples of 16, as the engine's are. Raises what the compiler raises.
    """
    assert not knobs.runtime.interpret, "TRITON_INTERPRET is set: kernels are defined for the interpreter"
    signature = {name: "constexpr" if name in constants else types[name] for name in kernel.arg_names}
    aligned = {
        (index,): [["tt.divisibility", 16]]
        for index, name in enumerate(kernel.arg_names)
        if signature[name].startswith("*") or name.endswith(ALIGNED)
    }
    source = ASTSource(kernel, signature, dict(constants), aligned)
    made = triton.compile(source, TARGETS[arch], {"num_warps": num_warps, "num_stages": num_stages})
    return _nvidia(arch, made) if arch.startswith("sm_") else _amd(arch, made)


ALIGNED = ("_row", "_head", "_block", "_slot")


def _nvidia(arch: str, made: Any) -> Compiled:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(made.asm["cubin"])
        file.flush()
        command = [knobs.nvidia.cuobjdump.path, "--dump-resource-usage", file.name]
        usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    registers, stack, local = (int(_found(rf"{name}:(\d+)", usage)) for name in ("REG", "STACK", "LOCAL"))
    matrix = {name: made.asm["ptx"].count(name) for name in MATRIX[arch]}
    return Compiled(registers, stack + local, made.metadata.shared, matrix)


def _amd(arch: str, made: Any) -> Compiled:
    text = made.asm["amdgcn"]
    vector, scratch = (
        int(_found(rf"\.{name}:\s+(\d+)", text)) for name in ("vgpr_count", "private_segment_fixed_size")
    )
    matrix = {name: text.count(name) for name in MATRIX[arch]}
    return Compiled(vector, scratch, made.metadata.shared, matrix)


def _found(pattern: str, text: str) -> str:
    match = re.search(pattern, text)
    assert match, (pattern, text[:200])
    return match.group(1)


def attention(
    arch: str, config: AttentionConfig, dim: int, *, narrow: bool = True, fp8: bool = False, capped: bool = False
) -> Compiled:
    """The attention kernel in bfloat16, 32 heads over 8 KV heads, pages of 16."""
    ints = dict.fromkeys(("items", "pieces", "table", "positions", "num_items"), "*i32")
    floats = dict.fromkeys(("lse", "partial_out", "partial_lse", "sinks", "key_scales", "value_scales"), "*fp32")
    stores = dict.fromkeys(("step_key", "step_value", "key_cache", "value_cache"), "*u8" if fp8 else "*bf16")
    types = {"query": "*bf16", "out": "*bf16", "scale": "fp32", "softcap": "fp32", "window": "i32"}
    strides = {name: "i32" for name in attend_kernel.arg_names if name.endswith(ALIGNED)}
    constants = {
        "NARROW": config.narrow if narrow else 0,
        "WIDE": config.wide,
        "KEYS": config.keys,
        "HEADS": 32,
        "GROUP": 4,
        "SLICE": 4,
        "DIM": dim,
        "BLOCK_DIM": triton.next_power_of_2(dim),
        "PAGE": 16,
        "CAPPED": capped,
        "SINKS": False,
        "FP8": fp8,
        "PRECISION": "ieee",
    }
    all_types = ints | floats | stores | types | strides
    return compile_for(arch, attend_kernel, all_types, constants, config.num_warps, config.num_stages)


def rows(arch: str) -> Iterator[tuple[str, AttentionConfig, int, Compiled]]:
    for dim, configs in ATTENTION[arch].items():
        for config in configs:
            yield arch, config, dim, attention(arch, config, dim)


def table(arches: list[str]) -> str:
    lines = [
        "| for | head size | tile (narrow, wide x keys) | warps, stages | registers | spilled | shared KiB | programs "
        "a processor | matrix instructions |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for arch in arches:
        for _, config, dim, made in rows(arch):
            tile = f"{config.narrow}, {config.wide} x {config.keys}"
            matrix = ", ".join(f"{count} {name}" for name, count in made.matrix.items())
            programs = made.programs_a_processor(arch, config.num_warps)
            lines.append(
                f"| {arch} | {dim} | {tile} | {config.num_warps}, {config.num_stages} | {made.registers} | "
                f"{made.spilled} | {made.shared / 1024:g} | {programs} | {matrix} |"
            )
            sys.stderr.write(lines[-1] + "\n")
    return "\n".join(lines)


if __name__ == "__main__":
    os.environ.setdefault("TRITON_CACHE_DIR", tempfile.mkdtemp())
    print(table(sys.argv[1:] or list(TARGETS)))
