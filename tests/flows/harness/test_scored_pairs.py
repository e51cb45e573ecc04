"""Which pairs become one request, and what its output says of each."""

import numpy as np

from engine.request import LabelScore, PromptLogprobs, RequestOutput
from flows.harness.scored_pairs import LABEL_TOKENS, PairScore, ScoredPairs


def asked(pairs: ScoredPairs) -> list[tuple[list[int], list[list[int]], int | None]]:
    """Prompt, labels, and where the prompt's own scores begin."""
    return [
        (
            request.prompt_token_ids.tolist(),
            [label.tolist() for label in request.labels or ()],
            request.prompt_logprobs_from,
        )
        for request in pairs.requests()
    ]


def test_continuations_of_a_context_are_labels_of_one_request() -> None:
    pairs = ScoredPairs(16)
    for number, (context, continuation) in enumerate([([1, 2], [3]), ([1, 9], [3]), ([1, 2], [4, 5]), ([1, 2], [3])]):
        pairs.add(number, context, continuation)
    assert asked(pairs) == [([1, 2], [[3], [4, 5]], None), ([1, 9], [[3]], None)]
    assert (len(pairs), pairs.num_tokens, pairs.num_cut) == (2, 4, 0)
    assert pairs.numbers("0") == [0, 3, 2]
    output = RequestOutput("0", "scored", 2, label_scores=(LabelScore(-1.0, True), LabelScore(-2.5, False)))
    assert pairs.scores(output) == [PairScore(0, -1.0, True), PairScore(3, -1.0, True), PairScore(2, -2.5, False)]


def test_what_is_too_long_loses_the_beginning_of_its_context() -> None:
    """The last token is looked up and never read, so that a window of 4 tokens scores 5."""
    pairs = ScoredPairs(4)
    pairs.add(0, [1, 2, 3, 4], [5])
    pairs.add(1, [0, 1, 2, 3, 4], [5])
    pairs.add(2, [1, 2, 3], [4, 5, 6, 7])
    assert asked(pairs) == [([1, 2, 3, 4], [[5]], None), ([3], [[4, 5, 6, 7]], None)]
    assert (pairs.numbers("0"), pairs.num_cut) == ([0, 1], 2)


def test_a_continuation_that_is_too_long_for_a_step_is_a_part_of_its_prompt() -> None:
    pairs = ScoredPairs(10_000)
    long = list(range(LABEL_TOKENS + 1))
    pairs.add(0, [7, 8], long)
    pairs.add(1, [7, 8], [1])
    assert asked(pairs) == [([7, 8, *long[:-1]], [long[-1:]], 2), ([7, 8], [[1]], None)]


def test_further_labels_of_a_context_are_parts_of_their_prompts() -> None:
    pairs = ScoredPairs(10_000)
    first, second = [1] * LABEL_TOKENS, [2, 3]
    for number, continuation in enumerate([first, second, first]):
        pairs.add(number, [7], continuation)
    assert asked(pairs) == [([7], [first], None), ([7, 2], [[3]], 1)]
    assert pairs.numbers("0") == [0, 2]


def test_a_prompts_own_scores_are_summed_with_its_labels() -> None:
    pairs = ScoredPairs(10_000)
    pairs.add(5, [7], [1] * (LABEL_TOKENS + 1))
    for flags, last, greedy in (([True, True], True, True), ([True, False], True, False), ([True, True], False, False)):
        none = np.zeros((2, 0), np.int32), np.zeros((2, 0), np.float32)
        read = PromptLogprobs(1, np.ones(2, np.int32), np.array([-1.0, -0.5], np.float32), np.array(flags), *none)
        output = RequestOutput("0", "scored", 3, label_scores=(LabelScore(-0.25, last),), prompt_logprobs=read)
        assert pairs.scores(output) == [PairScore(5, -1.75, greedy)]
