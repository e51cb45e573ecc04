"""What the processor can do, of what is compiled for it; asked without torch and numba, which take seconds to load.

LLVM is asked itself: a few lines that each have an instruction of their own somewhere are compiled, and looked at. So
the answers hold for any processor that it compiles for, and `NUMBA_CPU_NAME` and `NUMBA_CPU_FEATURES`, which numba
reads too, make a processor run the loops as a lesser one would: `NUMBA_CPU_NAME=haswell`.
"""

import os
from dataclasses import dataclass

from kernels.kv_format import CHUNK

try:
    from llvmlite import binding
except ImportError:  # nothing is compiled
    binding = None

# Sums of products in 32 bits of float, of rounding to bfloat16, and of bytes.
_LINES = """
define void @floats(ptr %a, ptr %b) {
  %x = load <16 x float>, ptr %a
  %y = load <16 x float>, ptr %b
  %z = call <16 x float> @llvm.fmuladd.v16f32(<16 x float> %x, <16 x float> %y, <16 x float> %y)
  store <16 x float> %z, ptr %a
  ret void
}
define void @halves(ptr %a) {
  %x = load <16 x float>, ptr %a
  %z = fptrunc <16 x float> %x to <16 x bfloat>
  store <16 x bfloat> %z, ptr %a
  ret void
}
define i32 @bytes(ptr %a, ptr %b) {
  %x = load <64 x i8>, ptr %a
  %y = load <64 x i8>, ptr %b
  %u = zext <64 x i8> %x to <64 x i32>
  %s = sext <64 x i8> %y to <64 x i32>
  %m = mul <64 x i32> %u, %s
  %z = call i32 @llvm.vector.reduce.add.v64i32(<64 x i32> %m)
  ret i32 %z
}
declare <16 x float> @llvm.fmuladd.v16f32(<16 x float>, <16 x float>, <16 x float>)
declare i32 @llvm.vector.reduce.add.v64i32(<64 x i32>)
"""


@dataclass(frozen=True, slots=True)
class Processor:
    """`name` and `features` are LLVM's. A register holds `lanes` floats, and there are so many `registers`.

    `fuses`: multiplies and adds at once. `pairs` and `bytes`: sums two products of bfloat16, and four of bytes, at
    once, in registers of 16 lanes.
    """

    triple: str
    name: str
    features: str
    lanes: int
    registers: int
    fuses: bool
    pairs: bool
    bytes: bool

    def __str__(self) -> str:
        """`znver4: 16 lanes, 32 registers, fma, bfloat16, int8`."""
        can = {"fma": self.fuses, "bfloat16": self.pairs, "int8": self.bytes}
        parts = [f"{self.lanes} lanes", f"{self.registers} registers", *(name for name, has in can.items() if has)]
        return f"{self.name}: {', '.join(parts)}"


def processor_of(triple: str, name: str, features: str = "") -> Processor:
    """What LLVM makes of a processor; `features` are added to the name's own, or taken away: `+avx2,-fma`."""
    machine = binding.Target.from_triple(triple).create_target_machine(cpu=name, features=features, opt=2)
    module = binding.parse_assembly(_LINES)
    module.triple = triple
    text = machine.emit_assembly(module)
    wide, is_arm = "%zmm" in text, not triple.startswith(("x86", "i386", "i686"))
    return Processor(
        triple,
        name,
        features,
        lanes=16 if wide else 8 if "%ymm" in text else 4,
        registers=32 if wide or is_arm else 16,
        fuses="fmadd" in text or "fmla" in text,
        pairs=wide and "vcvtneps2bf16" in text,
        bytes=wide and "vpdpbusd" in text,
    )


def _this_processor() -> Processor:
    """The one that runs this, or what the environment asks for instead; the least where nothing is compiled."""
    if binding is None:
        return Processor("", "any", "", 4, 16, fuses=False, pairs=False, bytes=False)
    binding.initialize_native_target()
    binding.initialize_native_asmprinter()
    name, features = os.environ.get("NUMBA_CPU_NAME"), os.environ.get("NUMBA_CPU_FEATURES")
    if features is None:
        # A name alone stands for its own features, not for the host's, as numba would have it.
        features = _host_features() if name is None else ""
    return processor_of(binding.get_process_triple(), name or binding.get_host_cpu_name(), features)


def _host_features() -> str:
    try:
        return str(binding.get_host_cpu_features().flatten())
    except RuntimeError:  # LLVM does not know how to ask here
        return ""


PROCESSOR = _this_processor()
NATIVE_BFLOAT16 = PROCESSOR.pairs
# Four products of bytes summed in one instruction; where there is none, they become float32 first.
NATIVE_BYTES = PROCESSOR.bytes


def takes_bytes(dim: int) -> bool:
    """Whether keys and values of `dim` elements may be in 8 bits here: it multiplies bytes, in whole vectors."""
    return NATIVE_BYTES and dim % CHUNK == 0
