"""Times a workload under each combination of sharing, order and admission, as a Markdown table.

    python -m engine.ablation WORKLOAD --model embedded --rounds 3

`batchllm`, `ratio`, `memory` is the paper's own set of rules (arXiv 2412.03594) on this engine. Every combination has
an engine of its own, loaded anew each round; rounds go over all combinations in turn, so that a machine that slows
down slows all of them. Without sharing there are no groups to order, but decode and prompt lengths still order rows.
"""

import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Annotated

import typer

from engine.build import build_engine
from engine.config import ADMISSION, ORDER, SHARING, EngineConfig
from engine.errors import UserError
from engine.model import ModelFiles, resolve_model
from engine.request import Request
from engine.timed_run import time_run
from engine.workload import read_workload


@dataclass(frozen=True, slots=True)
class Timed:
    """One run: `computed_tokens` are prompt tokens that ran."""

    seconds: float
    computed_tokens: int
    peak_kv_bytes: int


def combinations(base: EngineConfig) -> list[EngineConfig]:
    """Every sharing, order and admission."""
    return [
        replace(base, sharing=sharing, order=order, admission=admission)  # type: ignore[arg-type]
        for sharing, order, admission in product(SHARING, ORDER, ADMISSION)
    ]


def time_once(model: ModelFiles, config: EngineConfig, requests: list[Request]) -> Timed:
    """Planning and running; loading is not counted. Raises UserError where a row fails."""
    engine = build_engine(model, config, detokenize=False)
    try:
        run = time_run(engine, requests)
        counters = engine.counters()
    finally:
        engine.close()
    return Timed(run.seconds, counters.computed_prompt_tokens, counters.peak_kv_bytes)


def markdown(configs: Sequence[EngineConfig], runs: Sequence[Sequence[Timed]]) -> str:
    """`runs[i]` are of `configs[i]`: the median's seconds, with the fastest and slowest where there are several."""
    lines = ["| sharing | order | admission | seconds | computed tokens | peak KV, MiB |", "|---|---|---|---|---|---|"]
    for config, timed in zip(configs, runs, strict=True):
        seconds = sorted(one.seconds for one in timed)
        spread = f" ({seconds[0]:.2f}-{seconds[-1]:.2f})" if len(seconds) > 1 else ""
        tokens, peak = timed[0].computed_tokens, max(one.peak_kv_bytes for one in timed)
        cells = (config.sharing, config.order, config.admission, f"{statistics.median(seconds):.2f}{spread}")
        lines.append("| " + " | ".join([*cells, f"{tokens:,}", f"{peak / 2**20:.1f}"]) + " |")
    return "\n".join(lines)


def ablation(
    workload: Path,
    model: Annotated[str, typer.Option(help="A folder with safetensors, a .gguf file, or 'embedded'.")] = "embedded",
    kv_gib: float = 4.0,
    rounds: Annotated[int, typer.Option(min=1)] = 1,
) -> None:
    """Time WORKLOAD under each combination of policies."""
    requests, files = read_workload(workload), resolve_model(model)
    configs = combinations(EngineConfig(kv_cache_memory=int(kv_gib * 2**30), max_num_batched_tokens=0))
    runs: list[list[Timed]] = [[] for _ in configs]
    for _ in range(rounds):
        for config, timed in zip(configs, runs, strict=True):
            timed.append(time_once(files, config, requests))
    typer.echo(markdown(configs, runs))


def main() -> None:
    try:
        typer.run(ablation)
    except UserError as problem:
        typer.echo(f"error: {problem}", err=True)
        sys.exit(2)


if __name__ == "__main__":
    main()
