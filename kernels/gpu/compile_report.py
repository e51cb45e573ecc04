"""What the compilers make of a kernel, with no device at hand: registers, spills, shared memory, matrix instructions.

    python -m kernels.gpu.compile_report [sm_80] [sm_90] [gfx942] [128 | 0] [--float32] [--json]

prints a Markdown row for every configuration in `kernels.gpu.tuning.attention_config` with the occupancy that follows,
and for the other kernels; with a number, for that head size alone; with 0, for the other kernels alone; with
`--float32`, for attention in 32 bits.
"""

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import triton
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from kernels.gpu.attention.attention_shape import dim_tiles
from kernels.gpu.attention.kernel_arguments import (
    AttendSizes,
    AttendStrides,
    CacheKV,
    HeadRows,
    ItemTables,
    KeyValue,
    MergeSizes,
    MergeTables,
    NormWeights,
    Partials,
    Reads,
    Results,
    Rotation,
    TileRows,
    WriteSizes,
)
from kernels.gpu.attention.kv_write import ROWS, rope_write_kernel
from kernels.gpu.attention.merge_kernel import merge_kernel
from kernels.gpu.attention.prefix_attention import DEEP_MERGE, WIDE_MERGE
from kernels.gpu.attention.prefix_attention_kernel import attend_kernel
from kernels.gpu.layer.add_normed import add_normed_kernel
from kernels.gpu.layer.e4m3 import e4m3_rows_kernel
from kernels.gpu.layer.gate import BLOCK as GATE_BLOCK
from kernels.gpu.layer.gate import gate_kernel
from kernels.gpu.layer.rms_norm import rms_norm_kernel
from kernels.gpu.matmul.adapters import COLUMNS, INPUTS, expand_kernel, shrink_kernel
from kernels.gpu.matmul.adapters import ROWS as ADAPTER_ROWS
from kernels.gpu.matmul.quantized_matmul import (
    QUANTIZED_ROWS,
    STAGES,
    matmul_tile,
    quantize_kernel,
    w4a16_kernel,
    w8a8_kernel,
    warps_of,
)
from kernels.gpu.tuning.attention_config import ATTENTION, AttentionConfig, attention_candidates
from kernels.gpu.tuning.device_limits import LIMITS
from kernels.paged_adapters import SITE_WORDS

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
# Types of arguments, as Triton writes them.
BF16, F32, I64, I32, I8, U8 = "*bf16", "*fp32", "*i64", "*i32", "*i8", "*u8"
FLOAT, COUNT, MULTIPLE = "fp32", "i32", "i32:16"
# A type, a tuple of them as a kernel takes it, or a constant.
Argument = str | int | tuple[Any, ...]
DIMS = (64, 80, 96, 128, 192, 256)
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


def compile_for(arch: str, kernel: Any, arguments: Sequence[Argument], num_warps: int, num_stages: int) -> Compiled:
    """`arguments` as in a launch: constants as they are, and the type of everything else as Triton writes it.

    Pointers, and numbers of the type `MULTIPLE`, are taken to be multiples of 16, as a model's strides and sizes of
    weights are: when it runs, Triton looks at each and compiles accordingly. Raises what the compiler raises.
    """
    assert not knobs.runtime.interpret, "TRITON_INTERPRET is set: kernels are defined for the interpreter"
    signature: dict[str, Argument] = {}
    constants: dict[str, Argument] = {}
    aligned: dict[tuple[int, ...], list[list[Any]]] = {}
    for index, (parameter, argument) in enumerate(zip(kernel.params, arguments, strict=True)):
        if parameter.is_constexpr:
            signature[parameter.name], constants[parameter.name] = "constexpr", argument
            continue
        signature[parameter.name] = _bare(argument)
        for path in _aligned_paths(argument, (index,)):
            aligned[path] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature, constants, aligned)
    made = triton.compile(source, TARGETS[arch], {"num_warps": num_warps, "num_stages": num_stages})
    return _nvidia(arch, made) if arch.startswith("sm_") else _amd(arch, made)


def _bare(argument: Argument) -> Argument:
    """Without what is said about alignment."""
    if isinstance(argument, tuple):
        named: Any = type(argument)
        made: tuple[Any, ...] = named._make(map(_bare, argument))
        return made
    assert isinstance(argument, str), argument
    return argument.removesuffix(":16")


def _aligned_paths(argument: Argument, path: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    if isinstance(argument, tuple):
        for index, part in enumerate(argument):
            yield from _aligned_paths(part, (*path, index))
    elif str(argument).startswith("*") or argument == MULTIPLE:
        yield path


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
    arch: str,
    config: AttentionConfig,
    dim: int,
    *,
    kind: str = BF16,
    small: bool = True,
    fp8: bool = False,
    capped: bool = False,
) -> Compiled:
    """The attention kernel in `kind`, 32 heads over 8 KV heads, pages of 16."""
    kept = U8 if fp8 else kind
    block_dim, rest_dim = dim_tiles(dim)
    arguments: list[Argument] = [
        Reads._make([kind, KeyValue._make([kept] * 2), KeyValue._make([kept] * 2)]),
        Results._make([kind, F32, Partials._make([F32] * 2)]),
        ItemTables._make([I32] * 4),
        F32,
        KeyValue._make([F32] * 2),
        I32,
        COUNT,
        FLOAT,
        FLOAT,
        AttendStrides._make([MULTIPLE] * 9),
        TileRows(config.small if small else 0, config.large),
        AttendSizes(
            HEADS=32,
            GROUP=4,
            SLICE=4,
            DIM=dim,
            BLOCK_DIM=block_dim,
            REST_DIM=rest_dim,
            PAGE=16,
            KEYS=config.keys,
            CAPPED=capped,
            SINKS=False,
            FP8=fp8,
        ),
    ]
    return compile_for(arch, attend_kernel, arguments, config.num_warps, config.num_stages)


def _heads(kind: str) -> HeadRows:
    return HeadRows._make([kind, MULTIPLE, MULTIPLE])


def _cache_kv(kind: str) -> CacheKV:
    return CacheKV._make([kind, kind, MULTIPLE, MULTIPLE, MULTIPLE])


Others = Iterator[tuple[str, int, Compiled]]


def others(arch: str) -> Others:
    """The other kernels by name: warps, and what becomes of them, for 32 heads over 8 KV heads of 128 in bfloat16."""
    config = ATTENTION[arch][128][0]
    yield "attention, 128, FP8", config.num_warps, attention(arch, config, 128, fp8=True)
    yield "attention, 128, soft-cap", config.num_warps, attention(arch, config, 128, capped=True)
    yield from _beside_attention(arch)
    yield from _rows_of_a_layer(arch)
    yield from _quantized(arch)
    yield from _adapters(arch)


def _beside_attention(arch: str) -> Others:
    merge: list[Argument] = [_heads(BF16), F32, Partials._make([F32] * 2), MergeTables._make([I32] * 4), F32]
    for name, tile in (("merge", WIDE_MERGE), ("merge of few rows", DEEP_MERGE)):
        merged = MergeSizes(32, tile.heads, tile.partials, DIM=128, BLOCK_DIM=128, SINKS=False)
        yield name, 4, compile_for(arch, merge_kernel, [*merge, merged], 4, 1)
    write: list[Argument] = [_heads(BF16), _heads(BF16), _heads(BF16), Rotation._make([F32] * 2), I64, BF16]
    write += [KeyValue._make([BF16] * 2), _cache_kv(BF16), KeyValue._make([F32] * 2)]
    write += [NormWeights._make([BF16, BF16, FLOAT]), COUNT]
    sizes = WriteSizes(
        32, 8, 128, BLOCK_DIM=128, ROTARY=128, PAGE=16, ROWS=ROWS, FP8=False, NORMED=False, ROUNDED=False
    )
    yield "rope and KV write", 4, compile_for(arch, rope_write_kernel, [*write, sizes], 4, 1)


def _rows_of_a_layer(arch: str) -> Others:
    for fp8, suffix, out in ((False, "", BF16), (True, " to FP8", U8)):
        norm = (BF16, BF16, out, F32, FLOAT, MULTIPLE, 4096, 4096, True, fp8)
        yield f"RMS norm{suffix}", 8, compile_for(arch, rms_norm_kernel, norm, 8, 1)
        block, warps = (16384, 16) if fp8 else (GATE_BLOCK, 4)
        for activation, is_gelu in (("silu", False), ("GELU", True)):
            gate = (BF16, out, F32, 14336, block, is_gelu, fp8)
            yield f"{activation} gate{suffix}", warps, compile_for(arch, gate_kernel, gate, warps, 1)
    add = (BF16, F32, BF16, BF16, F32, BF16, FLOAT, 4096, 4096, False)
    yield "norm, sum, norm", 8, compile_for(arch, add_normed_kernel, add, 8, 1)
    yield "FP8 activations", 8, compile_for(arch, e4m3_rows_kernel, (BF16, U8, F32, MULTIPLE, 4096, 4096), 8, 1)


def _quantized(arch: str) -> Others:
    sizes = (COUNT, MULTIPLE, MULTIPLE, MULTIPLE)
    for rows in (16, 64):
        tile = matmul_tile(rows, 4096, 32, 128, LIMITS[arch].processors)._replace(SPLITS=2)
        warps = warps_of(tile.M)
        w4a16, w8a8 = (BF16, U8, F32, F32, *sizes, tile), (I8, F32, I8, F32, F32, *sizes, tile)
        yield f"W4A16, {rows} rows", warps, compile_for(arch, w4a16_kernel, w4a16, warps, STAGES)
        yield f"W8A8, {rows} rows", warps, compile_for(arch, w8a8_kernel, w8a8, warps, STAGES)
    rounding = (BF16, F32, I8, F32, COUNT, MULTIPLE, MULTIPLE, QUANTIZED_ROWS, 128, True)
    yield "8-bit activations", 4, compile_for(arch, quantize_kernel, rounding, 4, 1)


def _adapters(arch: str) -> Others:
    """Of rank 16, in pages of 2,048 numbers."""
    shrink = (BF16, F32, I64, COUNT, MULTIPLE, MULTIPLE, MULTIPLE, SITE_WORDS, ADAPTER_ROWS, INPUTS, 16)
    yield "adapters' shrink", 4, compile_for(arch, shrink_kernel, shrink, 4, 3)
    sizes = (COUNT, COUNT, COUNT, COUNT, MULTIPLE, MULTIPLE, MULTIPLE)
    expand = (F32, BF16, I64, *sizes, SITE_WORDS, ADAPTER_ROWS, 16, COLUMNS)
    yield "adapters' expand", 4, compile_for(arch, expand_kernel, expand, 4, 3)


def rows(arch: str, dims: Sequence[int] = (), kind: str = BF16) -> Iterator[tuple[str, Compiled, int]]:
    """What was compiled, how it came out, and its warps: attention in the head sizes `dims`, or everything."""
    for dim in dims or DIMS:
        room = dim if kind == BF16 else 2 * dim
        for config in attention_candidates(arch, room) if dim else ():
            tile = f"{config.small}, {config.large} x {config.keys}; {config.num_warps}, {config.num_stages}"
            yield f"{arch} | {dim} | {tile}", attention(arch, config, dim, kind=kind), config.num_warps
    for name, num_warps, made in others(arch) if not any(dims) and kind == BF16 else ():
        yield f"{arch} | {name} | {num_warps}", made, num_warps


def main(arguments: Sequence[str]) -> None:
    """A line a row: of the table, or of JSON with `--json`."""
    dims = [int(word) for word in arguments if word.isdigit()]  # 0: none, so the other kernels alone
    for arch in [word for word in arguments if word in TARGETS] or TARGETS:
        for name, made, num_warps in rows(arch, dims, F32 if "--float32" in arguments else BF16):
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
