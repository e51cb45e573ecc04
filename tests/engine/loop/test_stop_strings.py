"""Stop strings over any text: it ends at the token that completes the first of them, and no character is split."""

from typing import Any

import numpy as np
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from engine.loop.output_processor import OutputState
from engine.model.checkpoint import resolve_model
from engine.model.tokenizer import load_tokenizer
from engine.request import Request
from engine.sampling_params import SamplingParams
from engine.scheduling.sequence import Sequence

TOKENIZER = load_tokenizer(resolve_model("embedded"))
NODE: Any = None
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"

PIECES = st.sampled_from(["a", " b", "\n\n", "é", "e\u0301", "日本", "\N{GRINNING FACE}", "\u200d", "ß.", "  "])
TEXTS = st.lists(PIECES | st.text(max_size=3), min_size=1, max_size=12).map("".join)


def ended(token_ids: list[int], stops: tuple[str, ...], *, include: bool) -> tuple[str, str, int]:
    """The reason, the text and the number of tokens."""
    params = SamplingParams(stop=stops, max_tokens=len(token_ids), include_stop_str_in_output=include)
    sequence = Sequence(0, (0, 0, 0), Request("r", np.array([1], np.int32), params), NODE, len(token_ids), None)
    state = OutputState(sequence, TOKENIZER, ())
    for token in token_ids:
        taken = state.take(token)
        sequence.token_ids.append(token)
        if taken.finished:
            break
    output = state.output()
    return output.finish_reason, output.text or "", len(output.token_ids)


def brute_force(token_ids: list[int], stops: tuple[str, ...], *, include: bool) -> tuple[str, str, int]:
    """Decodes all tokens so far, one token after the other, and looks for each stop in the whole text."""
    for count in range(1, len(token_ids) + 1):
        text = TOKENIZER.decode(token_ids[:count])
        if text.endswith(REPLACEMENT):  # in the middle of a character
            continue
        found = [(text.index(stop), len(stop)) for stop in stops if stop in text]
        if found:
            at, length = min(found)
            return "stop", text[: at + length if include else at], count
    return "length", TOKENIZER.decode(token_ids), len(token_ids)


@settings(max_examples=150)
@given(TEXTS, st.lists(st.tuples(st.integers(0, 40), st.integers(1, 6)), min_size=1, max_size=3), st.booleans())
def test_a_text_ends_where_brute_force_ends_it(text: str, cuts: list[tuple[int, int]], include: bool) -> None:
    """Stops are pieces of the text, wherever tokens begin, so that most are found; one never is."""
    token_ids = TOKENIZER.encode(text, add_special_tokens=False)
    whole = TOKENIZER.decode(token_ids)
    assume(text and whole == text and REPLACEMENT not in text)  # a few characters have no tokens
    stops = (*{text[start : start + length] for start, length in cuts} - {""}, "never there")
    reason, said, count = ended(token_ids, stops, include=include)
    assert (reason, said, count) == brute_force(token_ids, stops, include=include)
    assert text.startswith(said)
