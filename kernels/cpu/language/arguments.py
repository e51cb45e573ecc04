"""What a loop is called with: fields that are named and typed once, in a NamedTuple of the loop's own.

Python packs the fields of a call, given by name, into 64-bit words; the loop unpacks them by the same NamedTuple. So
neither counts places, and a field that is inserted moves the others on both sides.

The annotation of a field says how its value becomes a word, and what the loop reads it as:

    Tensor              its address, an int64
    Tensor | None       its address, or 0
    Ints                the address of a contiguous array of int64
    int, bool           an int64; whatever is an index, such as an integer of numpy's, will do
    float               a float32; the word has the bits of a float64
    Counter             the address of the word itself, which is 0 when the call starts: see `next_of`
"""

import ctypes
import struct
from collections.abc import Callable
from operator import index, itemgetter
from typing import Any, NewType, get_type_hints

import numpy as np
from torch import Tensor

from kernels.cpu.language.jit import intrinsic, ir, types
from kernels.segments import Ints

Counter = NewType("Counter", int)
# The default of a counter, which no call gives: it is the last field.
AT_ZERO = Counter(0)


def _address_or_zero(value: Tensor | None) -> int:
    return 0 if value is None else Tensor.data_ptr(value)


def _address_of_array(value: Ints) -> int:
    if not isinstance(value, np.ndarray) or value.dtype != np.int64 or not value.flags.c_contiguous:
        raise TypeError
    return value.ctypes.data


def _bits(value: float) -> int:
    if type(value) is not float:
        raise TypeError
    return int(struct.unpack("q", struct.pack("d", value))[0])


# Each raises TypeError for a value of another type.
_WRITERS: dict[Any, Callable[[Any], int]] = {
    Tensor: Tensor.data_ptr,
    Tensor | None: _address_or_zero,
    Ints: _address_of_array,
    int: index,
    bool: index,
    float: _bits,
    Counter: index,
}


class Layout:
    """The words of a loop's calls, by the NamedTuple of its arguments."""

    def __init__(self, fields: Callable[..., Any]) -> None:
        self._label = fields.__name__
        self.kinds = kinds = _kinds(fields)
        self.names = tuple(kinds)
        counters = [place for place, kind in enumerate(kinds.values()) if kind is Counter]
        assert counters in ([], [len(kinds) - 1]), f"{self._label}: a counter is the last field, and the only one"
        # The place of the word in which threads count the units of work that they take.
        self.counter = counters[0] if counters else None
        self._given = self.names[: self.counter]
        self._in_order = itemgetter(*self._given)
        self._array = ctypes.c_int64 * len(kinds)
        self._writers = {name: _WRITERS[kind] for name, kind in kinds.items()}
        # Integers are words as they are, and their array takes nothing else.
        others = [place for place, kind in enumerate(kinds.values()) if kind not in (int, bool, Counter)]
        self._converted = [(place, self._writers[self.names[place]]) for place in others]

    def pack(self, fields: dict[str, Any]) -> Any:
        """The words of a call. Raises TypeError for a field that is missing, unknown or wrongly typed."""
        # A step of a few rows is a thousand calls, and what they take in Python counts.
        try:
            values = [*self._in_order(fields)]
            for place, write in self._converted:
                values[place] = write(values[place])
            words = self._array(*values)
        except (KeyError, TypeError):
            words = None
        if words is None or len(fields) != len(self._given):
            raise TypeError(self._fault(fields))
        return words

    def words(self, fields: dict[str, Any]) -> dict[int, int]:
        """Some fields of a call: their places among its words, and what is written there; raises as `pack` does."""
        try:
            return {self._given.index(name): self._writers[name](value) for name, value in fields.items()}
        except (TypeError, ValueError):
            raise TypeError(self._fault(fields)) from None

    def _fault(self, fields: dict[str, Any]) -> str:
        """What is wrong with the fields of a call, in a line."""
        for name, value in fields.items():
            if name not in self._given:
                return f"{self._label} has no field {name}"
            try:
                self._writers[name](value)
            except TypeError:
                return f"{self._label}: {name} cannot be {type(value).__name__}"
        missing = [name for name in self._given if name not in fields]
        return f"{self._label}: {', '.join(missing)} missing"


def _kinds(fields: Callable[..., Any]) -> dict[str, Any]:
    """By field, in order, its annotation; raises TypeError for one that no word is made of."""
    kinds = get_type_hints(fields)
    for name, kind in kinds.items():
        if kind not in _WRITERS:
            raise TypeError(f"{name} is a {kind}, of which no word is made")
    return kinds


def reader(fields: Callable[..., Any]) -> Any:
    """For numba: `read(arguments)` is the call's fields, as a tuple with their names, from the address of its words."""

    @intrinsic
    def read(_: Any, arguments: Any) -> Any:  # the signature that numba calls
        kinds = list(_kinds(fields).values())
        made = types.NamedTuple([types.float32 if kind is float else types.int64 for kind in kinds], fields)

        def generate(context: Any, builder: Any, _: Any, given: Any) -> Any:
            values = []
            for number, kind in enumerate(kinds):
                place = builder.gep(given[0], [ir.Constant(ir.IntType(64), number)])
                if kind is Counter:
                    values.append(builder.ptrtoint(place, ir.IntType(64)))
                    continue
                word = builder.load(place)
                if kind is float:
                    word = builder.fptrunc(builder.bitcast(word, ir.DoubleType()), ir.FloatType())
                values.append(word)
            return context.make_tuple(builder, made, values)

        return made(arguments), generate

    return read
