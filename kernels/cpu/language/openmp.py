"""Runs compiled loops on torch's own OpenMP threads.

numba compiles the loops, but its threads are a second pool that fights torch's for the cores: torch's workers spin
for a while after each operation. libgomp starts a team by `GOMP_parallel(function, argument, threads, flags)`, which
is what compilers emit for `#pragma omp parallel`, so a loop that is handed to it runs on torch's own threads.

A loop gets the address of its arguments (`kernels.cpu.language.arguments`). It finds its share of the work by
`share(count)`, or takes one unit of it after the other by `next_of`.
"""

import ctypes
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Generic, ParamSpec

import numpy as np
import torch

from kernels.cpu.language.arguments import Layout
from kernels.cpu.language.jit import FASTMATH, INSTALLED, binding, carray, float32, intrinsic, ir, njit, types
from kernels.cpu.language.loop_cache import compile_function, left_to_torch

P = ParamSpec("P")
# As many as torch has, but within `loops_alone`.
_num_threads_of_loops: Callable[[], int] = torch.get_num_threads
_THREAD_SYMBOLS = ("omp_get_thread_num", "omp_get_num_threads")


@cache
def _runtime() -> ctypes.CDLL | None:
    """torch's OpenMP runtime, or None where it is not one that starts teams in libgomp's way, or nothing compiles."""
    if not INSTALLED:
        return None
    try:
        runtime = ctypes.CDLL(str(next(Path(torch.__file__).with_name("lib").glob("libgomp*"))))
        start = runtime.GOMP_parallel
    except (StopIteration, OSError, AttributeError):
        return None
    start.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)
    start.restype = None
    for name in _THREAD_SYMBOLS:
        address = ctypes.cast(getattr(runtime, name), ctypes.c_void_p).value
        binding.add_symbol(name, address)
    return runtime


def available() -> bool:
    """Whether loops can run here; where not, every kernel takes its torch twin."""
    return _runtime() is not None


@contextmanager
def loops_alone() -> Iterator[None]:
    """Within it loops have all threads, and what torch computes has one.

    Torch's elementwise functions compute whole vectors, and what is left at the end of a thread's part otherwise: which
    elements that is follows from how many rows and threads there are. For one thread of the program at a time.
    """
    global _num_threads_of_loops
    threads = torch.get_num_threads()
    _num_threads_of_loops = lambda: threads  # noqa: E731
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        _num_threads_of_loops = torch.get_num_threads


class Loop(Generic[P]):
    """A compiled loop, called with the fields of `arguments`, by name; the caller answers for shapes.

    `function` gets the address of the call's words, and reads them by `reader(arguments)`. The sums
    of one `in_order` are made as they are written; few need it, so it is compiled when one of them is asked for.
    """

    def __init__(
        self, function: Callable[[Any], None], arguments: Callable[P, tuple[Any, ...]], *, in_order: bool = False
    ) -> None:
        self.function = function
        self.arguments = arguments
        self.layout = Layout(arguments)
        self.in_order = in_order
        self._compiled: Any = None
        self._address = 0

    @cached_property
    def available(self) -> bool:
        """Whether it runs here; where not, its kernel takes its torch twin. The first that is asked compiles all."""
        return available() and self.function.__module__ not in left_to_torch(in_order=self.in_order)

    @property
    def fastmath(self) -> set[str]:
        """What the compiler may do to arithmetic."""
        return set() if self.in_order else FASTMATH

    def compile(self) -> None:
        """In a child; and elsewhere, before the first call, what a child has compiled."""
        compiled = compile_function(self.function, self.fastmath)
        self._address = compiled.address
        self._compiled = compiled

    def __call__(self, *places: P.args, **fields: P.kwargs) -> None:
        """Runs it on all threads, and returns when they have ended; TypeError where fields are not those declared."""
        if places:
            raise TypeError("a loop's arguments are given by name")
        words = self.layout.pack(fields)
        if self._compiled is None:
            assert self.available, "its kernel asks first"
            self.compile()
        runtime = _runtime()
        assert runtime is not None
        runtime.GOMP_parallel(self._address, words, _num_threads_of_loops(), 0)
        recording = getattr(_thread, "recording", None)
        if recording is not None:
            recording.calls.append((self, self._address, words))


_thread = threading.local()


class Recording:
    """Calls of loops that are made within it, to be made again by `run`: for a step of few rows, calls cost most.

    It is what CUDA graphs are on a GPU, with their conditions: all that the calls read and write must stay where it
    was, but for fields that the caller changes, and nothing else may have been computed between the calls.
    """

    def __init__(self) -> None:
        self.calls: list[tuple[Loop[Any], int, Any]] = []

    def __enter__(self) -> "Recording":
        _thread.recording = self
        return self

    def __exit__(self, *_: object) -> None:
        _thread.recording = None

    def change(self, loop: Loop[Any], **fields: Any) -> None:
        """Gives `fields` of this loop's calls other values, which the caller keeps alive."""
        changed = loop.layout.words(fields)
        for made, _, words in self.calls:
            if made is loop:
                for place, word in changed.items():
                    words[place] = word

    def run(self) -> None:
        """Makes the calls again, in their order."""
        runtime = _runtime()
        assert runtime is not None
        threads = _num_threads_of_loops()
        for loop, address, words in self.calls:
            counter = loop.layout.counter
            if counter is not None:
                words[counter] = 0
            runtime.GOMP_parallel(address, words, threads, 0)


def is_recording() -> bool:
    """On this thread."""
    return getattr(_thread, "recording", None) is not None


_thread_num = types.ExternalFunction("omp_get_thread_num", types.int32())
_num_threads = types.ExternalFunction("omp_get_num_threads", types.int32())


@njit(inline="always", error_model="numpy")
def share(count: int) -> tuple[int, int]:
    """This thread's part `[first, last)` of `count` equal pieces of work."""
    thread, threads = _thread_num(), _num_threads()
    return count * thread // threads, count * (thread + 1) // threads


def _pointer_to(numba_type: Any) -> Any:
    @intrinsic
    def pointer(typing_context: Any, word: Any) -> Any:  # the signature that numba calls
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return builder.inttoptr(arguments[0], context.get_value_type(types.CPointer(numba_type)))

        return types.CPointer(numba_type)(types.int64), generate

    return pointer


_float32_pointer = _pointer_to(types.float32)
_int64_pointer = _pointer_to(types.int64)
_int32_pointer = _pointer_to(types.int32)
_int8_pointer = _pointer_to(types.int8)
_uint16_pointer = _pointer_to(types.uint16)


@njit(inline="always", error_model="numpy")
def float32_at(word: int, count: int) -> Any:
    return carray(_float32_pointer(word), (count,))


@njit(inline="always", error_model="numpy")
def int64_at(word: int, count: int) -> Any:
    return carray(_int64_pointer(word), (count,))


@njit(inline="always", error_model="numpy")
def int32_at(word: int, count: int) -> Any:
    return carray(_int32_pointer(word), (count,))


@njit(inline="always", error_model="numpy")
def int8_at(word: int, count: int) -> Any:
    return carray(_int8_pointer(word), (count,))


@njit(inline="always", error_model="numpy")
def uint16_at(word: int, count: int) -> Any:
    """bfloat16 numbers, as numba has no such type: see `bfloat16_bits`."""
    return carray(_uint16_pointer(word), (count,))


@njit(inline="always", error_model="numpy")
def lines_of(count: int) -> Any:
    """`count` float32 of scratch that begin on a cache line, and the array that keeps them alive."""
    room = np.empty(count + 16, np.float32)
    skipped = (-room.ctypes.data // 4) % 16
    return room[skipped : skipped + count]


@intrinsic
def next_of(typing_context: Any, word: Any) -> Any:
    """Adds one to the integer at the address, for all threads at once; returns what it was."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer = builder.inttoptr(arguments[0], ir.PointerType(ir.IntType(64)))
        return builder.atomic_rmw("add", pointer, ir.Constant(ir.IntType(64), 1), "monotonic")

    return types.int64(types.int64), generate


def _bits_as(from_type: Any, to_type: Any, llvm_type: ir.Type) -> Any:
    @intrinsic
    def cast(typing_context: Any, value: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return builder.bitcast(arguments[0], llvm_type)

        return to_type(from_type), generate

    return cast


as_float32 = _bits_as(types.int32, types.float32, ir.FloatType())
bits_of = _bits_as(types.float32, types.int32, ir.IntType(32))


@njit(inline="always", error_model="numpy")
def bfloat16_bits(x: Any) -> Any:
    """The bits of the bfloat16 nearest to a float32, ties to even; NaN stays NaN."""
    bits = bits_of(x)
    if bits & types.int32(0x7FFFFFFF) > types.int32(0x7F800000):
        return (bits >> types.int32(16)) | types.int32(0x40)
    return (bits + types.int32(0x7FFF) + ((bits >> types.int32(16)) & types.int32(1))) >> types.int32(16)


@njit(inline="always", fastmath=FASTMATH)
def exp(x: Any) -> Any:
    """e to the float32 `x`, to 3 units in the last place within [-87, 88] and clamped to that outside.

    2**k times a polynomial in the rest (Cephes' expf): unlike the C library's, it vectorises.
    """
    bounded = min(max(x, float32(-87.0)), float32(88.0))
    power = np.floor(bounded * float32(1.4426950408889634) + float32(0.5))
    rest = bounded - power * float32(0.693359375) + power * float32(2.12194440e-4)
    tail = float32(1.9875691500e-4) * rest + float32(1.3981999507e-3)
    tail = tail * rest + float32(8.3334519073e-3)
    tail = tail * rest + float32(4.1665795894e-2)
    tail = tail * rest + float32(1.6666665459e-1)
    tail = tail * rest + float32(5.0000001201e-1)
    value = tail * rest * rest + rest + float32(1.0)
    return value * as_float32(types.int32((types.int32(power) + types.int32(127)) << types.int32(23)))
