"""What lm-evaluation-harness asks of a model, beside its own HFLM: the same rows, number by number."""

import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from tests.tasks.steps import ask, model_job, run_steps

WINDOW = 48
TOLERANCE = 1e-3


@pytest.fixture(scope="module")
def hflm(tiny_model: Path) -> Any:
    return HFLM(pretrained=str(tiny_model), device="cpu", dtype="float32", batch_size=1, max_length=WINDOW)


def random_texts(hflm: Any, counts: list[int]) -> list[str]:
    """Texts of about so many random tokens, none of them special."""
    chance = random.Random(0)
    return [hflm.tokenizer.decode([chance.randrange(300, 40_000) for _ in range(count)]) for count in counts]


def run_job(folder: Path, model: Path, rows: list[dict[str, str]], **task: Any) -> list[dict[str, Any]]:
    prompt = {"column": "text", "truncate_prompt_tokens": -1}
    engine = {"device": "cpu", "kv_cache_memory": "16MiB", "max_model_len": WINDOW}
    job = model_job(folder, model, rows, prompt=prompt, task=task, engine=engine)
    run_steps(job)
    errors = ask(job.output_folder, "select custom_id, error_type, error_message from errors")
    assert errors == []
    return ask(job.output_folder, "select * from results order by custom_id")


def instances(kind: str, arguments: list[tuple[str, ...]]) -> list[Instance]:
    return [Instance(request_type=kind, doc={}, arguments=one, idx=i) for i, one in enumerate(arguments)]  # type: ignore[arg-type]


AWKWARD = [
    ("", "An answer."),
    ("", " a"),
    ("Question: is it so?\nAnswer:", " yes"),
    ("Question: is it so?\nAnswer: ", "yes"),
    ("Question: is it so?\nAnswer:  \n", "  yes, it is. "),
    ("Question: is it so?\nAnswer:", "yes"),
    ("x", " "),
    ("caf\u00e9 na\u00efve \u65e5\u672c\u8a9e ", "\u65e5\u672c\u8a9e \U0001f600"),
]


def test_loglikelihood_is_hflms(hflm: Any, tiny_model: Path, tmp_path: Path) -> None:
    contexts = random_texts(hflm, [1, 2, 5, 20, WINDOW - 1, WINDOW, WINDOW + 1, 3 * WINDOW])
    continuations = random_texts(hflm, [1, 1, 2, 9, 20, WINDOW // 2])
    pairs = AWKWARD + [(context, " " + words) for context in contexts for words in continuations]
    # What greedy decoding would write comes back as greedy.
    pairs += [(one, greedy) for one in contexts[:4] if (greedy := greedy_word(hflm, one))]
    rows = [{"id": f"{i:03}", "text": text, "answer": answer} for i, (text, answer) in enumerate(pairs)]
    theirs = hflm.loglikelihood(instances("loglikelihood", pairs), disable_tqdm=True)
    ours = run_job(tmp_path, tiny_model, rows, type="loglikelihood", continuation_column="answer")
    assert len(ours) == len(theirs) == len(pairs)
    for row, (logprob, is_greedy), pair in zip(ours, theirs, pairs, strict=True):
        assert row["logprob"] == pytest.approx(logprob, abs=TOLERANCE), pair
        assert row["is_greedy"] is is_greedy, pair
    assert {is_greedy for _, is_greedy in theirs} == {True, False}


def greedy_word(hflm: Any, context: str) -> str | None:
    """The next token's text, where it is the same tokens again behind the context."""
    import torch

    ids = hflm.tok_encode(context)
    with torch.inference_mode():
        token = int(hflm.model(torch.tensor([ids[-WINDOW:]])).logits[0, -1].argmax())
    word = hflm.tokenizer.decode([token])
    return word if hflm.tok_encode(context + word) == [*ids, token] else None


def test_rolling_is_hflms(hflm: Any, tiny_model: Path, tmp_path: Path) -> None:
    counts = [1, 2, 7, WINDOW - 1, WINDOW, WINDOW + 1, 2 * WINDOW, 2 * WINDOW + 1, 5 * WINDOW + 3]
    texts = [*random_texts(hflm, counts), " spaces at both ends \n", "word", "caf\u00e9 \u65e5\u672c\u8a9e"]
    rows = [{"id": f"{i:03}", "text": text} for i, text in enumerate(texts)]
    theirs = hflm.loglikelihood_rolling(instances("loglikelihood_rolling", [(text,) for text in texts]), True)
    ours = run_job(tmp_path, tiny_model, rows, type="loglikelihood_rolling")
    for row, logprob, text in zip(ours, theirs, texts, strict=True):
        tokens = hflm.tok_encode(text)
        assert row["logprob"] == pytest.approx(logprob, abs=TOLERANCE), text
        assert row["perplexity"] == pytest.approx(math.exp(-logprob / len(tokens)), rel=1e-4), text


def test_windows_may_overlap(hflm: Any, tiny_model: Path, tmp_path: Path) -> None:
    """With more context than lm-eval's own requests have, by its windows, which HFLM scores; a text may be shorter."""
    texts, context_len = random_texts(hflm, [2, WINDOW // 2, 3 * WINDOW]), WINDOW - 8
    ours = run_job(
        tmp_path,
        tiny_model,
        [{"id": f"{i}", "text": text} for i, text in enumerate(texts)],
        type="loglikelihood_rolling",
        context_len=context_len,
    )
    for row, text in zip(ours, texts, strict=True):
        windows = get_rolling_token_windows(hflm.tok_encode(text), hflm.prefix_token_id, WINDOW, context_len)
        requests = [(("", ""), *make_disjoint_window(one)) for one in windows]
        theirs = sum(logprob for logprob, _ in hflm._loglikelihood_tokens(requests, disable_tqdm=True))
        assert row["logprob"] == pytest.approx(theirs, abs=TOLERANCE)


def test_choice_picks_what_multiple_choice_counts(hflm: Any, tiny_model: Path, tmp_path: Path) -> None:
    """`label` and `label_norm` are the arguments of lm-eval's `acc` and `acc_bytes`."""
    choices = ["no", "perhaps it is, though nobody can tell", "caf\u00e9", "\u65e5\u672c\u8a9e\u3067\u3059"]
    contexts = [f"{text}\nAnswer:" for text in random_texts(hflm, [3, 5, 8, 13, 21])]
    pairs = [(context, f" {choice}") for context in contexts for choice in choices]
    lls = np.array([one for one, _ in hflm.loglikelihood(instances("loglikelihood", pairs), True)]).reshape(-1, 4)
    rows = [{"id": f"{i}", "text": context} for i, context in enumerate(contexts)]
    ours = run_job(tmp_path, tiny_model, rows, type="choice", labels=[f" {choice}" for choice in choices])
    sizes = np.array([len(choice.encode()) for choice in choices])
    assert [row["label"] for row in ours] == [f" {choices[i]}" for i in lls.argmax(1)]
    assert [row["label_norm"] for row in ours] == [f" {choices[i]}" for i in (lls / sizes).argmax(1)]
    assert [row["label"] for row in ours] != [row["label_norm"] for row in ours]
