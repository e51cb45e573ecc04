"""The layouts of loops' arguments: what Python writes by name is what a loop reads by that name."""

import importlib
import inspect
import random
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from numba import carray, cfunc, types
from torch import Tensor

from kernels.cpu.language import openmp
from kernels.cpu.language.arguments import AT_ZERO, Counter, Layout, reader
from kernels.cpu.language.loop_cache import NAMES
from kernels.cpu.language.openmp import Loop, Recording
from kernels.cpu.layer.rms_norm import LOOP as RMS_NORM
from kernels.segments import Ints

COMPILED = pytest.mark.skipif(not openmp.available(), reason="this torch has no libgomp: nothing is compiled")


class Example(NamedTuple):
    rows: Tensor
    table: Ints
    number: int
    is_wide: bool
    eps: float
    sinks: Tensor | None
    taken: Counter = AT_ZERO


class WithOneMore(NamedTuple):
    inserted: float
    rows: Tensor
    table: Ints
    inserted_too: int
    number: int
    eps: float


class WithoutIt(NamedTuple):
    rows: Tensor
    table: Ints
    number: int
    eps: float


def example() -> dict[str, Any]:
    table = np.arange(3, dtype=np.int64)
    return {"rows": torch.ones(2), "table": table, "number": -7, "is_wide": True, "eps": 0.25, "sinks": None}


def drawn(layout: Layout) -> tuple[dict[str, Any], dict[str, float]]:
    """A value for each field of a call, all different, and the numbers that they are read as."""
    fields: dict[str, Any] = {}
    numbers: dict[str, float] = {}
    for index, (name, kind) in enumerate(layout.kinds.items()):
        value: Any = 1000 + index
        if kind in (Tensor, Tensor | None):
            value = torch.empty(1 + index)
            numbers[name] = value.data_ptr()
        elif kind == Ints:
            value = np.empty(1 + index, dtype=np.int64)
            numbers[name] = value.ctypes.data
        elif kind is Counter:
            continue
        else:
            value = value / 8 if kind is float else value
            numbers[name] = value
        fields[name] = value
    return fields, numbers


def read_by_name(arguments: Any, words: Any, names: list[str]) -> dict[str, float]:
    """What a compiled function reads of each field; the numbers are below 2**53, so a float64 holds them."""
    read, made = reader(arguments), np.zeros(len(names))
    body = "".join(f"    out[{place}] = a.{name}\n" for place, name in enumerate(names))
    scope: dict[str, Any] = {"read": read, "carray": carray}
    exec(f"def f(words, out_):\n    out, a = carray(out_, ({len(names)},)), read(words)\n{body}", scope)
    compiled = cfunc(types.void(types.CPointer(types.int64), types.CPointer(types.float64)))(scope["f"])
    compiled.ctypes(words, made.ctypes.data_as(compiled.ctypes.argtypes[1]))
    return dict(zip(names, made.tolist(), strict=True))


@COMPILED
@pytest.mark.parametrize("name", NAMES)
def test_a_loop_reads_each_field_of_a_call_as_it_was_named(name: str) -> None:
    """Whatever the order of the keywords."""
    loop = importlib.import_module(name).LOOP
    fields, numbers = drawn(loop.layout)
    shuffled = random.Random(0).sample([*fields.items()], len(fields))
    words = loop.layout.pack(dict(shuffled))
    assert [*words] == [*loop.layout.pack(fields)]
    assert read_by_name(loop.arguments, words, [*numbers]) == numbers


@pytest.mark.parametrize("name", NAMES)
def test_a_counter_is_where_units_are_counted(name: str) -> None:
    """The last field, and in no loop that shares its work without one."""
    module = importlib.import_module(name)
    counters = [field for field, kind in module.LOOP.layout.kinds.items() if kind is Counter]
    assert len(counters) == inspect.getsource(module).count("next_of(a.")
    assert module.LOOP.layout.counter == (len(module.LOOP.layout.names) - 1 if counters else None)
    assert len(set(module.LOOP.layout.names)) == len(module.LOOP.layout.names)


@COMPILED
def test_a_field_that_is_inserted_moves_no_other() -> None:
    names = ["table", "number", "eps"]
    values = {"rows": torch.ones(2), "table": np.arange(3), "number": -7, "eps": 0.25}
    before = Layout(WithoutIt).pack(values)
    after = Layout(WithOneMore).pack(values | {"inserted": 9.0, "inserted_too": 9})
    assert len(after) == len(before) + 2
    assert read_by_name(WithoutIt, before, names) == read_by_name(WithOneMore, after, names)


def test_words_are_addresses_integers_and_bits() -> None:
    fields = example()
    quarter = 0x3FD0000000000000
    wanted = [fields["rows"].data_ptr(), fields["table"].ctypes.data, -7, 1, quarter, 0, 0]
    assert [*Layout(Example).pack(fields)] == wanted


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"number": 1.0}, "Example: number cannot be float"),
        ({"number": torch.ones(2)}, "Example: number cannot be Tensor"),
        ({"eps": 1}, "Example: eps cannot be int"),
        ({"rows": 4096}, "Example: rows cannot be int"),
        ({"rows": None}, "Example: rows cannot be NoneType"),
        ({"sinks": 0}, "Example: sinks cannot be int"),
        ({"table": np.zeros(3)}, "Example: table cannot be ndarray"),
        ({"table": np.zeros((4, 4), dtype=np.int64)[:, 1]}, "Example: table cannot be ndarray"),
        ({"extra": 1}, "Example has no field extra"),
        ({"taken": 1}, "Example has no field taken"),
    ],
)
def test_a_field_that_is_wrong_is_named(change: dict[str, Any], fault: str) -> None:
    for run in (Layout(Example).pack, Layout(Example).words):
        with pytest.raises(TypeError) as raised:
            run(example() | change)
        assert str(raised.value) == fault


def test_fields_that_are_missing_are_named() -> None:
    fields = example()
    del fields["eps"], fields["rows"]
    with pytest.raises(TypeError) as raised:
        Layout(Example).pack(fields)
    assert str(raised.value) == "Example: rows, eps missing"


def test_a_field_of_no_known_kind_is_refused() -> None:
    class Named(NamedTuple):
        rows: int
        name: str

    with pytest.raises(TypeError, match="name is a <class 'str'>, of which no word is made"):
        Layout(Named)


@COMPILED
def test_a_call_by_place_or_with_a_wrong_field_runs_nothing() -> None:
    x, weight, out = torch.ones(1, 4), torch.ones(4), torch.zeros(1, 4)
    right = {"x": x, "weight": weight, "out": out, "rows": 1, "size": 4, "eps": 0.0}
    with pytest.raises(TypeError, match="given by name"):
        RMS_NORM(x, weight, out, 1, 4, 0.0, False)
    for fields in (right, right | {"out_is_bfloat16": False, "block": 1}, right | {"out_is_bfloat16": 0.0}):
        with pytest.raises(TypeError):
            RMS_NORM(**fields)
    assert out.tolist() == [[0.0] * 4]


@COMPILED
def test_fields_of_a_recorded_call_are_changed_by_name() -> None:
    x, weight, twice = torch.ones(1, 4), torch.ones(4), torch.full((4,), 2.0)
    out, other = torch.zeros(1, 4), torch.zeros(1, 4)
    with Recording() as recording:
        RMS_NORM(x=x, weight=weight, out=out, rows=1, size=4, eps=0.0, out_is_bfloat16=False)
    recording.change(RMS_NORM, out=other, weight=twice)
    recording.change(Loop(print, Example), eps=0.5)  # of another loop, which was not called
    out.zero_()
    recording.run()
    assert (out.tolist(), other.tolist()) == ([[0.0] * 4], [[2.0] * 4])
    with pytest.raises(TypeError, match="RmsNormArguments: rows cannot be float"):
        recording.change(RMS_NORM, rows=1.0)
