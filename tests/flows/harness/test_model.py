"""Answers beside those of the harness's own model of transformers, in float32: awkward texts, and few-shot prompts."""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from lm_eval.api.model import CacheHook
from lm_eval.models.huggingface import HFLM

from engine.errors import UserError
from flows.harness.model import TrunklineLM
from tests.engine.tiny_adapters import save_adapter
from tests.flows.harness.conftest import TOLERANCE, WINDOW, instances, prefixes

UNTIL = {"until": ["\n\n", "Q:"], "max_gen_toks": 24}
Pairs = list[tuple[str, str]]


def drawn(model: TrunklineLM, rng: random.Random, count: int) -> str:
    """A text of about as many tokens, uniform over most of the vocabulary."""
    return model.tok_decode([rng.randrange(100, 49_000) for _ in range(count)])


def awkward(model: TrunklineLM) -> Pairs:
    rng = random.Random(0)
    prompt = prefixes()[0][:900]
    endings = (" (A)", " (B)", "(C) it is so", "\n", " yes" * 40)
    pairs = [(prompt + question, ending) for question in ("Q: What?\nA:", "Q: Who? ") for ending in endings]
    pairs += [("", "hello world"), ("", "x"), ("abc  ", "d"), ("abc\n\n", " d"), ("abc ", " "), ("word", "ing")]
    pairs += [("<|im_start|>user\nhi", " there"), ("", "<|im_start|>user hi"), ("a", "\N{GRINNING FACE}")]
    sizes = [(30, 1), (WINDOW + 50, 20), (20, WINDOW // 2), (5, WINDOW - 30), (1, WINDOW - 8)]
    sizes += [(rng.randrange(1, WINDOW + 40), rng.randrange(1, 30)) for _ in range(40)]
    return pairs + [(drawn(model, rng, context), drawn(model, rng, continuation)) for context, continuation in sizes]


def assert_scores(ours: Sequence[tuple[float, bool]], theirs: Sequence[tuple[float, bool]]) -> None:
    assert [greedy for _, greedy in ours] == [greedy for _, greedy in theirs]
    assert max(abs(one - other) for (one, _), (other, _) in zip(ours, theirs, strict=True)) < TOLERANCE


def test_awkward_pairs(ours: TrunklineLM, theirs: HFLM) -> None:
    asked = instances("loglikelihood", awkward(ours))
    assert_scores(ours.loglikelihood(asked, True), theirs.loglikelihood(asked, True))


def test_greedy_continuations_are_told(ours: TrunklineLM, theirs: HFLM) -> None:
    """A random model's own text; what is one token off is not."""
    contexts = [drawn(ours, random.Random(seed), 20) for seed in range(3)]
    asked = [(context, {"until": [], "max_gen_toks": 6}) for context in contexts]
    texts = ours.generate_until(instances("generate_until", asked), True)
    pairs = [(context, text + more) for context, text in zip(contexts, texts, strict=True) for more in ("", " no")]
    scores = ours.loglikelihood(instances("loglikelihood", pairs), True)
    assert_scores(scores, theirs.loglikelihood(instances("loglikelihood", pairs), True))
    assert [greedy for _, greedy in scores].count(True) >= 1


def test_rolling_windows(ours: TrunklineLM, theirs: HFLM) -> None:
    rng = random.Random(1)
    lengths = (1, WINDOW - 1, WINDOW, WINDOW + 1, 3 * WINDOW + 7)
    texts = ["", "\n", prefixes()[3][:1200], *(drawn(ours, rng, length) for length in lengths)]
    asked = instances("loglikelihood_rolling", [(text,) for text in texts])
    values, expected = ours.loglikelihood_rolling(asked, True), theirs.loglikelihood_rolling(asked, True)
    assert values == pytest.approx(expected, abs=TOLERANCE)
    assert values[0] == 0.0


def test_texts(ours: TrunklineLM, theirs: HFLM) -> None:
    contexts = [prefixes()[0][:500], "hello", "  x ", drawn(ours, random.Random(2), WINDOW + 9), prefixes()[5][:900]]
    asked: list[tuple[Any, ...]] = [
        (context, given)
        for context in contexts
        for given in (UNTIL, {"until": [" the", "."], "max_gen_toks": 30}, {"max_new_tokens": 20, "until": "\n"})
    ]
    requests = instances("generate_until", asked)
    assert ours.generate_until(requests, True) == theirs.generate_until(requests, True)


def test_a_text_ends_before_what_it_writes(ours: TrunklineLM, theirs: HFLM) -> None:
    """Stops taken from the model's own text: within a token, over a border, and two at once."""
    context = "hello"
    [text] = ours.generate_until(instances("generate_until", [(context, {"until": [], "max_gen_toks": 16})]), True)
    stops = [[text[9:12]], [text[5:14]], [text[20:22], text[12:15]], [text[:3]]]
    requests = instances("generate_until", [(context, {"until": stop, "max_gen_toks": 16}) for stop in stops])
    answers = ours.generate_until(requests, True)
    assert answers == theirs.generate_until(requests, True)
    assert [text.startswith(answer) and len(answer) < len(text) for answer in answers] == [True] * 4


def test_an_empty_context_begins_with_the_prefix_token(ours: TrunklineLM) -> None:
    """The harness's own model fails at one."""
    requests = instances("generate_until", [("", UNTIL), (ours.tok_decode([ours.prefix_token_id], False), UNTIL)])
    first, second = ours.generate_until(requests, True)
    assert first == second


def test_repetitions_are_drawn_apart_and_alike_in_the_next_run(ours: TrunklineLM) -> None:
    sampled = {"do_sample": True, "temperature": 1.0, "until": [], "max_gen_toks": 8}
    asked = [("hello", sampled)] * 3 + [("hello", sampled | {"seed": 5})] * 2
    texts = ours.generate_until(instances("generate_until", asked), True)
    assert len(set(texts[:3])) == 3
    assert texts[3] == texts[4]
    later = [("other", sampled), *asked]
    assert ours.generate_until(instances("generate_until", later), True)[1:] == texts


def test_a_model_that_reasons_answers_behind_it(ours: TrunklineLM, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = instances("generate_until", [("hello", {"until": [], "max_gen_toks": 16})])
    [text] = ours.generate_until(asked, True)
    ids = ours.tok_encode(text)
    for end in (ids[4], ours.tok_decode(ids[4:5])):
        monkeypatch.setattr(ours, "args", ours.args.model_copy(update={"think_end_token": end}))
        [answer] = ours.generate_until(asked, True)
        assert answer == ours.tok_decode(ids[5:]).lstrip()


class Kept(CacheHook):
    """What the harness's cache is told."""

    def __init__(self) -> None:
        self.kept: list[Any] = []

    def add_partial(self, attr: str, req: Any, res: Any) -> None:
        self.kept.append((attr, req, res))


def test_the_harness_cache_is_told_of_every_answer(ours: TrunklineLM, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = Kept()
    monkeypatch.setattr(ours, "cache_hook", kept)
    pairs, texts = [("a", " b"), ("a", " c"), ("a", " b")], [("a b c",), ("",)]
    scores = ours.loglikelihood(instances("loglikelihood", pairs), True)
    rolling = ours.loglikelihood_rolling(instances("loglikelihood_rolling", texts), True)
    answers = ours.generate_until(instances("generate_until", [("a", UNTIL)]), True)
    told = [("loglikelihood", pair, score) for pair, score in zip(pairs, scores, strict=True)]
    told += [("loglikelihood_rolling", text, value) for text, value in zip(texts, rolling, strict=True)]
    told += [("generate_until", ("a", UNTIL), answers[0])]
    assert sorted(map(repr, kept.kept)) == sorted(map(repr, told))


@pytest.mark.parametrize(
    ("kind", "asked", "said"),
    [
        ("loglikelihood", ("abc", ""), "task, document 0: the continuation has no token of its own behind its context"),
        (
            "loglikelihood",
            ("a", " b" * 200),
            "task, document 0: the continuation has 200 tokens, and the model takes 128",
        ),
        ("generate_until", ("a", {"max_gen_toks": 128}), "task, document 0: max_gen_toks: 128 leave no room"),
        ("generate_until", ("a", {"num_beams": 3}), "generation_kwargs: num_beams 3 is not taken"),
    ],
)
def test_what_cannot_be_asked_is_said_by_name(ours: TrunklineLM, kind: str, asked: Any, said: str) -> None:
    with pytest.raises(UserError) as refused:
        getattr(ours, kind)(instances(kind, [asked]), True)
    assert str(refused.value).startswith(said)


def test_an_adapter(ours: TrunklineLM, tmp_path: Path) -> None:
    """Beside PEFT's own, in the harness's own model."""
    folder = save_adapter(Path(ours.args.path), tmp_path / "adapter", 0)
    theirs = HFLM(ours.args.path, dtype="float32", device="cpu", max_length=WINDOW, peft=str(folder))
    adapted = TrunklineLM(ours.args.path, max_length=WINDOW, kv_cache_memory="64MiB", peft=str(folder))
    asked = instances("loglikelihood", awkward(ours)[:12])
    scores = adapted.loglikelihood(asked, True)
    assert_scores(scores, theirs.loglikelihood(asked, True))
    assert abs(scores[0][0] - ours.loglikelihood(asked[:1], True)[0][0]) > 100 * TOLERANCE
    texts = instances("generate_until", [("hello", UNTIL)])
    assert adapted.generate_until(texts, True) == theirs.generate_until(texts, True)


def test_an_adapter_that_is_not_there_is_said_as_an_argument(ours: TrunklineLM) -> None:
    with pytest.raises(UserError, match=r"^model_args: peft: nowhere is no folder; give one that PEFT saved$"):
        TrunklineLM(ours.args.path, peft="nowhere")


def test_a_length_that_the_model_has_not_is_refused(ours: TrunklineLM) -> None:
    with pytest.raises(UserError, match=r"^model_args: max_length: .* takes 1,024 tokens at most$"):
        TrunklineLM(ours.args.path, max_length=2048)


def test_what_the_cache_of_keys_does_not_hold_is_said_by_name(ours: TrunklineLM) -> None:
    model = TrunklineLM(ours.args.path, kv_cache_memory="1MiB", block_size=600)
    with pytest.raises(UserError, match=r"^task, document 1: 70\d tokens[,;] .*kv_cache_memory holds 600"):
        model.loglikelihood(instances("loglikelihood", [("a", " b"), (" a" * 700, " b")]), True)


def test_a_folder_that_is_not_there_is_said_as_an_argument() -> None:
    with pytest.raises(UserError, match=r"^model_args: pretrained: no folder .*nowhere"):
        TrunklineLM("nowhere")
