"""A real few-shot set as a workload: MMLU's prompts out of lm-evaluation-harness's wheel, with questions behind each.

    python -m examples.peers.few_shot letters --subjects 57 --rows 20 > few-shot.jsonl

A prompt is a subject's five examples and a question; the questions are those of all subjects' examples, since the wheel
has no others, and no prompt asks what one of its own examples answers. `letters` asks for the four letters, one token
each, as the harness's `mmlu` does; `answers` for the four answers' own texts, as its `mmlu_continuation`. Lines are as
`engine.bench.workload` writes them; `--every 10` leaves nine of ten out, for a side that is slow.
"""

import json
import random
import re
from dataclasses import dataclass
from importlib.resources import files
from typing import Annotated, Any

import typer

from engine.model.checkpoint import resolve_model
from engine.model.tokenizer import load_tokenizer

FILE = "tasks/mmlu/flan_cot_fewshot/_cot_prompts.json"
EXAMPLE = re.compile(r"Q: (.*?)\n\(A\) ([^\n]*) \(B\) ([^\n]*) \(C\) ([^\n]*) \(D\) ([^\n]*)\nA: ", re.DOTALL)
LETTERS = " A", " B", " C", " D"


@dataclass(frozen=True, slots=True)
class Question:
    subject: str
    text: str
    answers: tuple[str, ...]


def read_prompts() -> dict[str, str]:
    """The examples of each subject."""
    prompts: dict[str, str] = json.loads((files("lm_eval") / FILE).read_text())
    return prompts


def questions_of(prompts: dict[str, str]) -> list[Question]:
    return [
        Question(subject, text, tuple(answers))
        for subject, prompt in prompts.items()
        for text, *answers in EXAMPLE.findall(prompt)
    ]


def asked(kind: str, prompt: str, question: Question) -> tuple[str, tuple[str, ...]]:
    """A context and its continuations."""
    if kind == "answers":
        return f"{prompt}\n\nQ: {question.text}\nA:", tuple(f" {answer}" for answer in question.answers)
    choices = "\n".join(f"{letter.strip()}. {answer}" for letter, answer in zip(LETTERS, question.answers, strict=True))
    return f"{prompt}\n\nQ: {question.text}\n{choices}\nAnswer:", LETTERS


def rows(kind: str, subjects: int, count: int) -> list[dict[str, Any]]:
    tokenizer = load_tokenizer(resolve_model("embedded"))
    prompts = read_prompts()
    questions, rng = questions_of(prompts), random.Random(0)
    lines: list[dict[str, Any]] = []
    for subject, prompt in list(prompts.items())[:subjects]:
        others = [question for question in questions if question.subject != subject]
        for question in rng.sample(others, count):
            context, continuations = asked(kind, prompt.strip(), question)
            ids = tokenizer.encode(context)
            ends = [tokenizer.encode(context + continuation)[len(ids) :] for continuation in continuations]
            lines.append({"id": str(len(lines)), "prompt_token_ids": ids, "continuations": ends})
    return lines


def write(
    kind: Annotated[str, typer.Argument(metavar="letters|answers")],
    subjects: Annotated[int, typer.Option(min=1, max=57)] = 57,
    rows_each: Annotated[int, typer.Option("--rows", min=1)] = 20,
    every: Annotated[int, typer.Option(min=1)] = 1,
) -> None:
    """Write the workload to standard output."""
    if kind not in ("letters", "answers"):
        raise typer.BadParameter(f"{kind!r} is neither letters nor answers")
    for line in rows(kind, subjects, rows_each)[::every]:
        typer.echo(json.dumps(line))


if __name__ == "__main__":
    typer.run(write)
