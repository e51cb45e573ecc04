"""What the compilers make of a kernel, with no device at hand: registers, spills, shared memory, matrix instructions.

    python -m kernels.gpu.compile_report [sm_80] [sm_90] [gfx942] [128 | 0] [--json]

prints a Markdown row for every configuration in `kernels.gpu.tuning` with the occupancy that follows, and for the other
kernels; with a number, for that head size alone; with 0, for the other kernels alone.
"""

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import triton
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from kernels.gpu.e4m3 import e4m3_rows_kernel
from kernels.gpu.gate import BLOCK as GATE_BLOCK
from kernels.gpu.gate import silu_gate_kernel
from kernels.gpu.kv_write import ROWS, rope_write_kernel
from kernels.gpu.merge import merge_kernel
from kernels.gpu.prefix_attention import MERGE_HEADS
from kernels.gpu.prefix_attention_kernel import attend_kernel
from kernels.gpu.prefix_plan import dim_tiles
from kernels.gpu.quantized_matmul import (
    QUANTIZED_ROWS,
    STAGES,
    quantize_kernel,
    tile_of,
    w4a16_kernel,
    w8a8_kernel,
    warps_of,
)
from kernels.gpu.rms_norm import rms_norm_kernel
from kernels.gpu.tuning import ATTENTION, LIMITS, AttentionConfig, attention_candidates

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

    Pointers, strides and sizes of weights are taken to be multiples of 16, as those of models are: when it runs, Triton
    looks at each and compiles accordingly. Raises what the compiler raises.
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


DIMS = (64, 80, 96, 128, 192, 256)
ALIGNED = ("_row", "_head", "_block", "_slot", "inputs", "outputs")


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
        "BLOCK_DIM": dim_tiles(dim)[0],
        "REST_DIM": dim_tiles(dim)[1],
        "PAGE": 16,
        "CAPPED": capped,
        "SINKS": False,
        "FP8": fp8,
        "PRECISION": "ieee",
    }
    all_types = ints | floats | stores | types | strides
    return compile_for(arch, attend_kernel, all_types, constants, config.num_warps, config.num_stages)


def others(arch: str) -> Iterator[tuple[str, int, Compiled]]:
    """The other kernels by name: warps, and what becomes of them, for 32 heads over 8 KV heads of 128 in bfloat16."""
    floats = ("lse", "partial_out", "partial_lse", "sinks", "key_scales", "value_scales", "cos", "sin", "scales", "out")
    ints = ("rows", "starts", "partials", "num_rows")
    types = dict.fromkeys(floats, "*fp32") | dict.fromkeys(ints, "*i32") | {"slots": "*i64"}
    bf16 = ("query", "key", "value", "turned", "step_key", "step_value", "key_cache", "value_cache", "x")
    types |= dict.fromkeys(bf16, "*bf16") | {"codes": "*u8", "x_scales": "*fp32"}
    sizes = {"rows": "i32", "outputs": "i32", "inputs": "i32"}
    strides = {
        n: "i32" for k in (merge_kernel, rope_write_kernel, w4a16_kernel) for n in k.arg_names if n.endswith(ALIGNED)
    }
    types |= strides
    for name, options in (("FP8", {"fp8": True}), ("soft-cap", {"capped": True})):
        config = ATTENTION[arch][128][0]
        yield f"attention, 128, {name}", config.num_warps, attention(arch, config, 128, **options)
    heads = {"HEADS": 32, "DIM": 128, "BLOCK_DIM": 128}
    merge = heads | {"BLOCK_HEADS": MERGE_HEADS, "SINKS": False}
    yield "merge", 4, compile_for(arch, merge_kernel, types | {"out": "*bf16"}, merge, 4, 1)
    write = heads | {"KV_HEADS": 8, "ROTARY": 128, "PAGE": 16, "FP8": False, "NORMED": False, "ROWS": ROWS}
    types |= {"query_norm": "*bf16", "key_norm": "*bf16", "eps": "fp32"}
    yield "rope and KV write", 4, compile_for(arch, rope_write_kernel, types | sizes, write, 4, 1)
    norm = {"SIZE": 4096, "BLOCK": 4096, "NARROWED": False}
    sized = types | {"out": "*bf16", "weight": "*bf16", "eps": "fp32", "gate_up": "*bf16", "x_row": "i32"}
    yield "RMS norm", 8, compile_for(arch, rms_norm_kernel, sized, norm, 8, 1)
    gate = {"SIZE": 14336, "BLOCK": GATE_BLOCK, "NARROWED": False}
    yield "silu gate", 4, compile_for(arch, silu_gate_kernel, sized, gate, 4, 1)
    rounded = sized | {"out": "*u8", "codes": "*u8"}
    norm, gate = norm | {"NARROWED": True}, {"SIZE": 14336, "BLOCK": 16384, "NARROWED": True}
    yield "RMS norm to FP8", 8, compile_for(arch, rms_norm_kernel, rounded, norm, 8, 1)
    yield "silu gate to FP8", 16, compile_for(arch, silu_gate_kernel, rounded, gate, 16, 1)
    yield "FP8 activations", 8, compile_for(arch, e4m3_rows_kernel, rounded, {"SIZE": 4096, "BLOCK": 4096}, 8, 1)
    for rows in (16, 64):
        m, n, _ = tile_of(rows, 4096, 32, LIMITS[arch].processors)
        tile, warps = {"M": m, "N": n, "GROUP": 128, "SPLITS": 2}, warps_of(m)
        yield f"W4A16, {rows} rows", warps, compile_for(arch, w4a16_kernel, types | sizes, tile, warps, STAGES)
        int8 = types | sizes | {"x": "*i8", "codes": "*i8"}
        yield f"W8A8, {rows} rows", warps, compile_for(arch, w8a8_kernel, int8, tile, warps, STAGES)
    rounding = {"M": QUANTIZED_ROWS, "GROUP": 128, "SMOOTHED": True}
    int8 = types | sizes | {"codes": "*i8", "factors": "*fp32"}
    yield "8-bit activations", 4, compile_for(arch, quantize_kernel, int8, rounding, 4, 1)


def rows(arch: str, dims: Sequence[int] = ()) -> Iterator[tuple[str, Compiled, int]]:
    """What was compiled, how it came out, and its warps: attention in the head sizes `dims`, or everything."""
    for dim in dims or DIMS:
        for config in attention_candidates(arch, dim) if dim else ():
            tile = f"{config.narrow}, {config.wide} x {config.keys}; {config.num_warps}, {config.num_stages}"
            yield f"{arch} | {dim} | {tile}", attention(arch, config, dim), config.num_warps
    for name, num_warps, made in others(arch) if not any(dims) else ():
        yield f"{arch} | {name} | {num_warps}", made, num_warps


def main(arguments: Sequence[str]) -> None:
    """A line a row: of the table, or of JSON with `--json`."""
    dims = [int(word) for word in arguments if word.isdigit()]  # 0: none, so the other kernels alone
    for arch in [word for word in arguments if word in TARGETS] or TARGETS:
        for name, made, num_warps in rows(arch, dims):
            programs = made.programs_a_processor(arch, num_warps)
            if "--json" in arguments:
                line = json.dumps({"name": name, "arch": arch, "programs": programs} | asdict(made))
            else:
                matrix = ", ".join(f"{count} {kind}" for kind, count in made.matrix.items() if count)
                cells = (name, made.registers, made.spilled, f"{made.shared / 1024:.3g}", programs, matrix)
                line = f"| {' | '.join(str(cell) for cell in cells)} |"
            sys.stdout.write(line + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1:])
