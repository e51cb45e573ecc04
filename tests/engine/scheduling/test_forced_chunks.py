"""Tokens that a grammar forces are rows beside each other, each of which sees all before it, however steps are cut."""

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from engine.request import Request
from engine.sampling_params import StructuredOutputs
from engine.scheduling.reads import Read
from engine.scheduling.step import ForcedChunk, Step, build_output
from kernels.segments import Segment
from tests.engine.scheduling.test_scheduler import SHAPE, config, cut, prompts, request, run
from tests.engine.scheduling.test_step import Trie, rows, table
from tests.engine.symbolic_model import SymbolicModel

STRUCTURED = StructuredOutputs(json_object=True)


def test_forced_tokens_are_rows_of_the_texts_own_segment() -> None:
    """Four tokens of a text: the first has its KV, the next two get theirs now, and the last waits."""
    trie = Trie()
    stem = trie.node([1, 2], (9, 1))
    text, other = trie.sequence(stem), trie.sequence(stem)
    text.token_ids, text.num_uncomputed, text.table = [10, 11, 12, 13], 3, table((0, 1), (4, 1))
    other.token_ids, other.table = [20], table((2, 1))
    output = build_output(Step([other], forced=[ForcedChunk(text, 2)]))
    assert rows(output) == ([20, 11, 12], [2, 3, 4], [8, 1, 2])
    assert [*output.segments] == [
        Segment(0, 1, 8, 9, 2),
        Segment(1, 3, 0, 3, 2),
        Segment(0, 3, 36, 38, 0),
    ]
    assert [*output.reads] == [Read(0, other.key)]
    assert (output.num_decode_tokens, output.num_forced_tokens, output.num_prefill_tokens) == (1, 2, 0)
    assert output.asked_rows.tolist() == [0]


def test_the_last_forced_token_is_read() -> None:
    """Over a border of blocks that lie apart, behind the node's own tokens."""
    trie = Trie()
    stem = trie.node([1, 2], (3, 1), (7, 1))
    text = trie.sequence(stem)
    text.token_ids, text.num_uncomputed, stem.tail = [10, 11, 12, 13], 3, text
    output = build_output(Step([], forced=[ForcedChunk(text, 3)]))
    assert rows(output) == ([11, 12, 13], [3, 4, 5], [15, 28, 29])
    assert [*output.segments] == [Segment(0, 3, 12, 16, 0), Segment(0, 3, 28, 30, 4)]
    assert [*output.reads] == [Read(2, text.key)]


def texts(requests: list[Request]) -> dict[str, list[int]]:
    """What each of the rows comes to with nothing scheduled."""
    model, found = SymbolicModel(0), {}
    for row in requests:
        tokens = row.prompt_token_ids.tolist()
        most = len(tokens) + min(row.max_tokens, SHAPE.max_model_len - len(tokens))
        while True:
            tokens.append(model.next_token(tokens))
            if tokens[-1] == 0 or len(tokens) == most:
                break
            if row.params.structured_outputs is not None:
                tokens += model.forced_behind(tokens)[: most - len(tokens)]
            if len(tokens) == most:
                break
        found[row.request_id] = tokens[len(row.prompt_token_ids) :]
    return found


@st.composite
def tables(draw: st.DrawFn) -> list[Request]:
    stems = draw(st.lists(prompts, min_size=1, max_size=3))
    row = st.tuples(st.sampled_from(stems), prompts, st.integers(1, 20), st.booleans())
    made = []
    for name, (stem, tail, cap, structured) in enumerate(draw(st.lists(row, min_size=1, max_size=10))):
        plain = request(str(name), stem + tail, cap)
        params = replace(plain.params, structured_outputs=STRUCTURED if structured else None)
        made.append(replace(plain, params=params))
    return made


@settings(max_examples=150, deadline=None)
@given(tables(), st.integers(20, 60), st.integers(1, 24), st.integers(0, 1), st.sampled_from([0, 1, 5]), st.booleans())
def test_texts_are_the_same_however_they_are_scheduled(
    requests: list[Request], num_blocks: int, tokens: int, in_flight: int, decode_ahead: int, halved: bool
) -> None:
    """Beside rows that a grammar forces nothing in, and with a step in flight, which those rows sit out."""
    limits = config(num_blocks, max_num_batched_tokens=tokens)
    parts = {"parts_of": cut} if halved else {}
    results, *_ = run(requests, limits, num_blocks, in_flight=in_flight, decode_ahead=decode_ahead, **parts)
    assert results == texts(requests)


def test_a_structured_text_sits_out_the_step_beside_its_own() -> None:
    """Its next mask needs the token in flight; a prompt's next chunk does not."""
    one = request("a", [1, 2, 3], 6)
    one = replace(one, params=replace(one.params, structured_outputs=STRUCTURED))
    sequence = Trie().sequence(Trie().node([1, 2, 3], (0, 1)))
    sequence.request = one
    assert sequence.can_decode
    sequence.pending_alone = 1
    assert not sequence.can_decode
    sequence.request = request("b", [1, 2, 3], 6)
    assert sequence.can_decode
