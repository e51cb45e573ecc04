"""Each loop as an object for other processors, made without running it: what its object asks of the process.

`python -m tests.kernels.cpu.loop_objects TRIPLE NAME...`, of processors that have the same vectors, prints a JSON
object: by name and loop `undefined` symbols, those of them that are `absent` from this process, and `intrinsics` of x86
that its module calls.
"""

import importlib
import json
import re
import struct
import sys
from dataclasses import replace

from llvmlite import binding

# What a linker puts there itself.
OFFSETS = "_GLOBAL_OFFSET_TABLE_"


def undefined_symbols(made: bytes) -> list[str]:
    """Of an object in ELF for 64 bits, little-endian."""
    sections = {section.name(): section.data() for section in binding.ObjectFileRef.from_data(made).sections()}
    table, names = sections[b".symtab"], sections[b".strtab"]
    found = []
    for at, kind, section in ((a, i, s) for a, i, _, s, _, _ in struct.iter_unpack("<IBBHQQ", table)):
        if section == 0 and kind >> 4 and at:  # undefined, and not local
            found.append(names[at : names.index(b"\0", at)].decode())
    return [symbol for symbol in found if symbol != OFFSETS]


def lowered(triple: str, name: str) -> dict[str, str]:
    """By loop, the module that numba makes of it for such a processor, before it is optimised."""
    from kernels import processor

    made = processor.processor_of(triple, name)
    if not triple.startswith("x86_64"):  # numba knows this machine's instructions alone, and none of them is asked for
        made = replace(made, triple=binding.get_process_triple(), name="x86-64", features="")
    processor.PROCESSOR = made
    processor.NATIVE_BFLOAT16, processor.NATIVE_BYTES = made.pairs, made.bytes
    from kernels.cpu.language import loop_cache, openmp
    from kernels.cpu.language.jit import cfunc, types

    assert openmp.available()
    signature, modules = types.void(types.CPointer(types.int64)), {}
    for loop in loop_cache.NAMES:
        made = importlib.import_module(loop).LOOP
        library = cfunc(signature, fastmath=made.fastmath, error_model="numpy")(made.function)._library
        modules[loop] = library.get_llvm_str()
    return modules


def object_for(text: str, triple: str, name: str) -> bytes:
    machine = binding.Target.from_triple(triple).create_target_machine(cpu=name, opt=1, reloc="pic")
    # The module is of this machine; another has its own layout, and attributes name instructions.
    text = re.sub(r'^target (triple|datalayout) = ".*"$', "", text, flags=re.MULTILINE)
    module = binding.parse_assembly(text)
    module.triple, module.data_layout = triple, str(machine.target_data)
    return bytes(machine.emit_object(module))


def main(triple: str, *names: str) -> None:
    binding.initialize_all_targets()
    binding.initialize_all_asmprinters()
    modules = lowered(triple, names[0])
    sys.stdout.write(
        json.dumps({name: {loop: _asks(modules[loop], triple, name) for loop in modules} for name in names})
    )


def _asks(text: str, triple: str, name: str) -> dict[str, list[str]]:
    undefined = undefined_symbols(object_for(text, triple, name))
    return {
        "undefined": undefined,
        "absent": [symbol for symbol in undefined if binding.address_of_symbol(symbol) is None],
        "intrinsics": sorted(set(re.findall(r"@(llvm\.x86\.[\w.]+)", text))),
    }


if __name__ == "__main__":
    main(*sys.argv[1:])
