"""The embedded model beside the harness's own model of it, in float32: few-shot prompts, and rows of random tokens."""

import random
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from lm_eval.models.huggingface import HFLM

from examples.peers import few_shot
from examples.peers.environments import write_model
from flows.harness.model import TrunklineLM
from tests.flows.harness.conftest import TOLERANCE, instances, prefixes

# Below it neither of two tokens is the greedy one in float32.
TIE = 1e-4
UNTIL = {"until": ["\n\n"], "max_gen_toks": 24}
Scores = Sequence[tuple[float, bool]]


class Sides:
    """Both models, over contexts of `max_length` tokens."""

    def __init__(self, folder: Path, max_length: int) -> None:
        # Softmax over this vocabulary in float32 is 8e-6 too high a token, which over 200 tokens is more than 1e-3.
        self.theirs = HFLM(str(folder), dtype="float32", softmax_dtype="float64", device="cpu", max_length=max_length)
        self.ours = TrunklineLM(str(folder), dtype="float32", max_length=max_length, kv_cache_memory="1GiB")

    def score(self, pairs: Sequence[tuple[str, str]]) -> None:
        asked = instances("loglikelihood", pairs)
        ours, theirs = self.ours.loglikelihood(asked, True), self.theirs.loglikelihood(asked, True)
        assert max(abs(one - other) for (one, _), (other, _) in zip(ours, theirs, strict=True)) < TOLERANCE
        for pair, (_, one), (_, other) in zip(pairs, ours, theirs, strict=True):
            assert one == other or self.margin(*self.ours.pair_ids(*pair)) < TIE, pair

    def write(self, contexts: Sequence[str]) -> None:
        asked = instances("generate_until", [(context, UNTIL) for context in contexts])
        answers = zip(
            contexts, self.ours.generate_until(asked, True), self.theirs.generate_until(asked, True), strict=True
        )
        for context, one, other in answers:
            assert one == other or self.margin(*self.ours.pair_ids(context, other)) < TIE, (one, other)

    def roll(self, texts: Sequence[str]) -> None:
        asked = instances("loglikelihood_rolling", [(text,) for text in texts])
        ours, theirs = self.ours.loglikelihood_rolling(asked, True), self.theirs.loglikelihood_rolling(asked, True)
        # Two units of float32 where a text's sum is so large that they are more than the tolerance: 8,271 over 600
        # random tokens was 1.4e-3 apart.
        assert ours == pytest.approx(theirs, abs=TOLERANCE, rel=2.4e-7)

    @torch.inference_mode()
    def margin(self, context: list[int], continuation: list[int]) -> float:
        """The least that parts the two best tokens at any place of the continuation."""
        whole = [*context, *continuation][-(self.ours.max_length + 1) :]
        logits = self.theirs.model(torch.tensor([whole[:-1]])).logits[0, -len(continuation) :]
        best = logits.topk(2).values
        return float((best[:, 0] - best[:, 1]).min())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("embedded"))


def questions(kind: str, count: int) -> list[tuple[str, str]]:
    """Pairs behind each subject's examples."""
    prompts = few_shot.read_prompts()
    asked = few_shot.questions_of(prompts)
    pairs = []
    for place, prompt in enumerate(list(prompts.values())[:count]):
        context, continuations = few_shot.asked(kind, prompt.strip(), asked[-1 - place])
        pairs += [(context, continuation) for continuation in continuations]
    return pairs


def test_a_few_shot_prompt(folder: Path) -> None:
    sides = Sides(folder, 96)
    sides.score(
        [*questions("answers", 1), ("", "Paris is the capital of France."), ("The capital of France is", " Paris")]
    )
    sides.write([prefixes()[1][:300]])
    sides.roll([prefixes()[2][:900]])


@pytest.mark.nightly
def test_all_few_shot_prompts(folder: Path) -> None:
    sides = Sides(folder, 1024)
    sides.score([*questions("letters", 57), *questions("answers", 15)])
    sides.write([context for context, _ in questions("answers", 57)[::16]])
    sides.roll(prefixes()[::8])


@pytest.mark.nightly
def test_rows_of_random_tokens(folder: Path) -> None:
    """Contexts beyond the window, continuations of one token and of nearly as many as the window has."""
    sides, rng = Sides(folder, 256), random.Random(0)

    def text(count: int) -> str:
        return sides.ours.tok_decode([rng.randrange(100, 49_000) for _ in range(count)])

    sizes = [(rng.randrange(1, 320), rng.choice((1, 1, 2, 5, 20, 200))) for _ in range(60)]
    pairs = [(text(context), text(continuation)) for context, continuation in sizes]
    sides.score([*pairs, *((f"{context}  ", continuation) for context, continuation in pairs[:10])])
    sides.write([text(rng.randrange(1, 300)) for _ in range(10)])
    sides.roll([text(count) for count in (1, 255, 256, 257, 600)])
