"""Shared-prefix workloads as JSON lines: what `engine.bench.run` and its peers run.

    python -m engine.bench.workload generate --groups 4 --degree 16 --prefix 2000 --distinct 200 --output 100
    python -m engine.bench.workload choice --groups 2 --degree 8 --prefix 1000 --distinct 80 --labels 4 --label-tokens 3
    python -m engine.bench.workload tree --instruction 1000 --documents 8 --document 700 --rows 16 --row 60 --output 1

A line is {"id", "prompt_token_ids", "max_tokens"} (greedy, end-of-sequence ignored) or
{"id", "prompt_token_ids", "continuations": [[...], ...]} (each continuation's log-likelihood). Tokens are drawn
uniformly, so that prompts share what the shape says and no more; lines come shuffled.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.random import Generator, default_rng

from engine.errors import UserError
from engine.request import Request
from engine.sampling_params import SamplingParams

# Ids below are special or rare in most vocabularies.
FIRST_TOKEN = 100

Count = Annotated[int, typer.Option(min=0)]
Rows = list[dict[str, Any]]


def _write(rows: Rows) -> None:
    for row in rows:
        typer.echo(json.dumps(row))


app = typer.Typer(
    add_completion=False,
    help="Write a shared-prefix workload as JSON lines to standard output.",
    result_callback=_write,
)


def read_workload(file: Path) -> list[Request]:
    """Raises UserError for a line that is no request."""
    requests = []
    for number, line in enumerate(file.read_text().splitlines(), start=1):
        try:
            requests.append(to_request(json.loads(line)))
        except (ValueError, KeyError, TypeError, AttributeError) as problem:
            raise UserError(f"{file}:{number}: not a workload line ({problem!r})") from None
    return requests


def to_request(row: dict[str, Any]) -> Request:
    labels = row.get("continuations")
    return Request(
        request_id=row["id"],
        prompt_token_ids=np.array(row["prompt_token_ids"], dtype=np.int32),
        params=SamplingParams(max_tokens=row.get("max_tokens", 1), ignore_eos=True),
        labels=None if labels is None else tuple(np.array(label, dtype=np.int32) for label in labels),
    )


@app.command()
def generate(
    groups: Count, degree: Count, prefix: Count, distinct: Count, output: Count, seed: Count = 0, vocab: Count = 49_000
) -> Rows:
    """`groups` prefixes of `prefix` tokens, each before `degree` prompts of `distinct` tokens more."""
    draw = Tokens(seed, vocab)
    return _shuffled(draw, grouped(draw, groups, degree, prefix, distinct), {"max_tokens": output})


@app.command()
def choice(
    groups: Count,
    degree: Count,
    prefix: Count,
    distinct: Count,
    labels: Count = 4,
    label_tokens: Count = 1,
    seed: Count = 0,
    vocab: Count = 49_000,
) -> Rows:
    """As `generate`; the same `labels` continuations of `label_tokens` tokens are asked of each prompt."""
    draw = Tokens(seed, vocab)
    prompts = grouped(draw, groups, degree, prefix, distinct)
    return _shuffled(draw, prompts, {"continuations": [draw(label_tokens) for _ in range(labels)]})


@app.command()
def tree(
    instruction: Count,
    documents: Count,
    document: Count,
    rows: Count,
    row: Count,
    output: Count,
    seed: Count = 0,
    vocab: Count = 49_000,
) -> Rows:
    """One instruction, `documents` documents behind it, `rows` rows behind each document."""
    draw = Tokens(seed, vocab)
    root = draw(instruction)
    stems = [root + draw(document) for _ in range(documents)]
    return _shuffled(draw, [stem + draw(row) for stem in stems for _ in range(rows)], {"max_tokens": output})


class Tokens:
    """Draws token ids."""

    def __init__(self, seed: int, vocab: int) -> None:
        self.rng: Generator = default_rng(seed)
        self.vocab = vocab

    def __call__(self, count: int) -> list[int]:
        ids: list[int] = self.rng.integers(FIRST_TOKEN, self.vocab, count).tolist()
        return ids


def grouped(draw: Tokens, groups: int, degree: int, prefix: int, distinct: int) -> list[list[int]]:
    stems = [draw(prefix) for _ in range(groups)]
    return [stem + draw(distinct) for stem in stems for _ in range(degree)]


def _shuffled(draw: Tokens, prompts: Iterable[list[int]], asked: dict[str, Any]) -> Rows:
    lines = list(prompts)
    places = draw.rng.permutation(len(lines))
    return [{"id": str(index), "prompt_token_ids": lines[at]} | asked for index, at in enumerate(places)]


if __name__ == "__main__":
    app()
