"""What goes over the wire arrives as it was."""

from dataclasses import fields, is_dataclass
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from engine.config import EngineConfig
from engine.model.checkpoint import ModelFiles
from engine.plan import ShardWork
from engine.request import Request, RequestOutput
from engine.sampling_params import StructuredOutputs
from tasks.engine_process.messages import (
    Died,
    Done,
    Finished,
    FromEngine,
    Load,
    Pulse,
    Submit,
    from_engine,
    read_from_engine,
    read_to_engine,
    to_engine,
)
from tasks.workers import Computed

FLOATS = st.floats(allow_nan=False)
PLAIN: dict[object, st.SearchStrategy[Any]] = {
    str: st.text(st.characters(codec="utf-8"), max_size=8),
    int: st.integers(-(2**63), 2**64 - 1),
    float: FLOATS,
    bool: st.booleans(),
    type(None): st.none(),
}
NOT_FREE: dict[object, st.SearchStrategy[Any]] = {
    StructuredOutputs: st.one_of(
        st.builds(StructuredOutputs, json=PLAIN[str]),
        st.builds(StructuredOutputs, json_object=st.just(True)),
        st.builds(StructuredOutputs, regex=PLAIN[str]),
        st.builds(StructuredOutputs, choice=st.tuples(PLAIN[str])),
        st.builds(StructuredOutputs, grammar=PLAIN[str]),
    )
}


def drawn(kind: Any) -> st.SearchStrategy[Any]:
    """Any value of a type, with all of a dataclass's fields, those of tomorrow too."""
    if kind in NOT_FREE:
        return NOT_FREE[kind]
    if kind in PLAIN:
        return PLAIN[kind]
    if is_dataclass(kind):
        hints = get_type_hints(kind)
        return st.builds(kind, **{field.name: drawn(hints[field.name]) for field in fields(kind)})
    origin, of = get_origin(kind), get_args(kind)
    if origin is np.ndarray:
        return arrays.arrays(get_args(of[1])[0], arrays.array_shapes(max_dims=2, min_side=0, max_side=3))
    if origin is Literal:
        return st.sampled_from(of)
    if origin in (Union, UnionType):
        return st.one_of(*map(drawn, of))
    assert origin is tuple, kind
    return st.lists(drawn(of[0]), max_size=2).map(tuple) if of[-1] is ... else st.tuples(*map(drawn, of))


def asked(request_id: str, labels: Any, first: int, pooling: Any, **others: Any) -> Request:
    """What `Request` holds true of itself is so."""
    return Request(
        request_id,
        labels=() if pooling is not None else labels,
        prompt_logprobs_from=None if pooling is not None else first,
        pooling=pooling,
        **others,
    )


def requests() -> st.SearchStrategy[Request]:
    hints = get_type_hints(Request)
    places = {field.name: drawn(hints[field.name]) for field in fields(Request)}
    del places["prompt_logprobs_from"]
    return st.builds(asked, first=st.none() | st.integers(1, 99), **places)


NOT_FREE[Request] = requests()
WORKS, OUTPUTS = drawn(ShardWork), drawn(RequestOutput)


def assert_same(one: object, other: object) -> None:
    """To the last bit, and of one type."""
    assert type(one) is type(other), (one, other)
    if isinstance(one, np.ndarray):
        assert isinstance(other, np.ndarray)
        assert (one.dtype, one.shape, one.tobytes()) == (other.dtype, other.shape, other.tobytes())
        assert other.flags.writeable
    elif is_dataclass(one):
        for field in fields(one):
            assert_same(getattr(one, field.name), getattr(other, field.name))
    elif isinstance(one, tuple):
        assert isinstance(other, tuple)
        assert len(one) == len(other)
        for a, b in zip(one, other, strict=True):
            assert_same(a, b)
    else:
        assert one == other


@given(WORKS)
@settings(max_examples=200)
def test_every_shard_arrives_as_it_was(work: ShardWork) -> None:
    arrived = read_to_engine(to_engine(Submit(7, work)))
    assert isinstance(arrived, Submit)
    assert arrived.number == 7
    assert_same(work, arrived.work)


@given(st.lists(OUTPUTS, max_size=3))
@settings(max_examples=200)
def test_every_output_arrives_as_it_was(outputs: list[RequestOutput]) -> None:
    arrived = read_from_engine(from_engine([Finished(i, output) for i, output in enumerate(outputs)]))
    for number, (output, message) in enumerate(zip(outputs, arrived, strict=True)):
        assert isinstance(message, Finished)
        assert message.number == number
        assert_same(output, message.output)


def test_what_to_load_arrives_as_it_was() -> None:
    nowhere = Path("/models/\udcff")  # a name that is no text
    model = ModelFiles("tiny", nowhere, None, "0123")
    config = EngineConfig(device="cpu", dtype="bfloat16", step_timeout=2.5)
    arrived = read_to_engine(to_engine(Load(model, config, nowhere)))
    assert arrived == Load(model, config, nowhere)
    assert read_to_engine(to_engine(Load(model, config, None))) == Load(model, config, None)


def test_what_an_engine_says_besides_arrives_as_it_was() -> None:
    said: list[FromEngine] = [
        Pulse(Computed(1, 2, 3, 4, 5.5, 6.5), 7, None),
        Done(3, (1, 0)),
        Died("RuntimeError: no", "Traceback"),
    ]
    assert read_from_engine(from_engine(said)) == said


@pytest.mark.parametrize("frame", [b"", b"\xc1", b"\x91\x92\xa4Pull\x01", from_engine([Done(3, (1, 0))])[:-1]])
def test_what_is_none_of_it_is_refused(frame: bytes) -> None:
    with pytest.raises(msgspec.MsgspecError):
        read_from_engine(frame)
