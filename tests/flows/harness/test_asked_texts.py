"""Which texts become one request, and which seed each is drawn with."""

from engine.sampling_params import SamplingParams
from flows.harness.asked_texts import AskedTexts, Seeds

GREEDY, DRAWN = SamplingParams(), SamplingParams(temperature=1.0)


def test_equal_prompts_asked_alike_are_one_request() -> None:
    texts = AskedTexts()
    for number, (prompt, params) in enumerate([([1, 2], GREEDY), ([1, 2], DRAWN), ([1, 2], GREEDY), ([3], GREEDY)]):
        texts.add(number, prompt, params, 8)
    assert [(one.request_id, one.prompt_token_ids.tolist(), one.params) for one in texts.requests()] == [
        ("0", [1, 2], GREEDY),
        ("1", [1, 2], DRAWN),
        ("2", [3], GREEDY),
    ]
    assert [texts.numbers(str(place)) for place in range(3)] == [[0, 2], [1], [3]]
    assert (len(texts), texts.num_tokens, texts.num_cut) == (3, 5, 0)


def test_a_prompt_that_leaves_no_room_loses_its_beginning() -> None:
    texts = AskedTexts()
    texts.add(0, [1, 2, 3], GREEDY, 2)
    texts.add(1, [2, 3], GREEDY, 2)
    assert [one.prompt_token_ids.tolist() for one in texts.requests()] == [[2, 3]]
    assert (texts.numbers("0"), texts.num_cut) == ([0, 1], 1)


def test_repetitions_of_a_sampled_text_have_seeds_of_their_own() -> None:
    """Whatever is asked between them, so that an answer depends on no other."""
    seeds = Seeds(7)
    asked = [([1], DRAWN), ([2], DRAWN), ([1], DRAWN), ([1], GREEDY), ([1], SamplingParams(temperature=1.0, seed=3))]
    assert [seeds.seeded(*one).seed for one in asked] == [7, 7, 8, None, 3]
