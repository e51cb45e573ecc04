"""Triton's interpreter, which keeps what it would make again for each operation: kernels take a third of the time.

At every launch, and at every call within a kernel, it looks through the language for what it replaces; for every number
it makes types, shapes and a table of formats. What kernels compute stays the same to the bit
(`tests/kernels/gpu/test_quick_interpreter.py`). Whole numbers that leave their type fail here: the interpreter looks
for them too, and says so under `TRITON_DEBUG` alone.
"""

from collections.abc import Callable
from types import FunctionType
from typing import Any

import numpy as np
from triton import language as tl
from triton.language import core
from triton.language.semantic import TritonSemantic
from triton.runtime import interpreter

CHECKED = {"add": np.add, "sub": np.subtract, "mul": np.multiply}
NO_DIMS = (core.constexpr(1), core.tuple([]))
REPLACED: list[tuple[Any, str, Any]] = []  # by owner and name, what was there


def quicken() -> None:
    """Of this process, for all kernels that it runs from here on."""
    assert not REPLACED
    for owner, name, quick in (
        (interpreter, "_patch_lang", language_patched_once(interpreter._patch_lang)),
        (interpreter, "_get_np_dtype", formats_kept(interpreter._get_np_dtype)),
        (core.block_type, "__init__", blocks_kept(core.block_type.__init__)),
        (core.tensor, "__init__", tensor_of_kept),
        (TritonSemantic, "broadcast_impl_value", alike_as_they_are(TritonSemantic.broadcast_impl_value)),
        (TritonSemantic, "binary_op_sanitize_overflow_impl", overflow_checked),
    ):
        REPLACED.append((owner, name, getattr(owner, name)))
        setattr(owner, name, quick)


def language_patched_once(patch: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Modules of kernels know the language as `triton.language`, Triton's own by parts of it."""
    known: dict[int, frozenset[str]] = {}
    patched: set[str] = set()

    def quick(function: FunctionType) -> Any:
        module = function.__globals__
        names = known.get(id(module))
        if names is None:
            held = {id(value) for value in module.values()}
            names = known[id(module)] = frozenset(part.__name__ for part in (tl, core) if id(part) in held)
        if not names or not names <= patched:
            patch(function)
            patched.update(names)
        return interpreter._LangPatchScope()  # which puts nothing back

    return quick


def formats_kept(plain: Callable[[Any], Any]) -> Callable[[Any], Any]:
    kept: dict[str, Any] = {}

    def quick(dtype: Any) -> Any:
        made = kept.get(dtype.name)
        if made is None:
            made = kept[dtype.name] = plain(dtype)
        return made

    return quick


def blocks_kept(plain: Callable[..., None]) -> Callable[..., None]:
    """Types of one name share all that they hold, which nobody changes; `dims` is for their tensors."""
    kept: dict[tuple[Any, ...], dict[str, Any]] = {}

    def quick(self: Any, element_ty: Any, shape: Any) -> None:
        key = (element_ty.name, *core._unwrap_shape(shape))
        made = kept.get(key)
        if made is None:
            plain(self, element_ty, shape)
            self.dims = core.constexpr(self.numel), core.tuple([core.constexpr(size) for size in self.shape])
            made = kept[key] = self.__dict__
        self.__dict__ = made

    return quick


def tensor_of_kept(self: Any, handle: Any, type: Any) -> None:
    self.handle, self.type, self.dtype = handle, type, type.scalar
    self.numel, self.shape = type.dims if type.is_block() else NO_DIMS


def alike_as_they_are(plain: Callable[..., Any]) -> Callable[..., Any]:
    """Operands of one shape are made alike by doing nothing."""

    def quick(self: Any, lhs: Any, rhs: Any) -> Any:
        left, right = lhs.type, rhs.type
        if left.is_block() and right.is_block() and left.shape.values == right.shape.values:
            return lhs, rhs
        return plain(self, lhs, rhs)

    return quick


def overflow_checked(self: Any, lhs: Any, rhs: Any, operation: Callable[..., Any]) -> None:
    """In one operation of numpy, where the interpreter writes five of its own."""
    dtype = lhs.type.scalar
    if dtype.int_bitwidth >= 64:
        return
    assert dtype == rhs.type.scalar
    wide = CHECKED[operation.__name__](lhs.handle.data, rhs.handle.data, dtype=np.int64)
    inside = (dtype.get_int_min_value() <= wide) & (wide <= dtype.get_int_max_value())
    assert inside.all(), f"int{dtype.int_bitwidth} overflow detected for operation {operation.__name__}"
