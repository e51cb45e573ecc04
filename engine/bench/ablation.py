"""Times workloads under sets of policies, as Markdown tables.

    python -m engine.bench.ablation [WORKLOAD...] --model embedded --rounds 3 [--every]

Without a file the workloads are `engine.bench.run_set`'s, which take some minutes a round. The default sets are ours,
ours with each policy switched off alone, nothing at all, and the paper's own set of rules (arXiv 2412.03594:
`batchllm`, `ratio`, `memory`) on this engine; `--every` runs all combinations. One set has one engine, loaded anew
for each workload and round; rounds go over all sets in turn, so that a machine that slows down slows all of them.
Without sharing there are no groups to order, but decode and prompt lengths still order rows.
"""

import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Annotated

import typer

from engine.bench.run_set import WORKLOADS
from engine.bench.timed_run import precise, time_run
from engine.bench.workload import read_workload, to_request
from engine.config import ADMISSION, ORDER, SHARING, EngineConfig
from engine.errors import UserError
from engine.loop.build import build_engine
from engine.machine.device import resolve_device
from engine.model.checkpoint import ModelFiles, resolve_model
from engine.request import Request


@dataclass(frozen=True, slots=True)
class Timed:
    """One run: `computed_tokens` are prompt tokens that ran."""

    seconds: float
    computed_tokens: int
    peak_kv_bytes: int


def switched_off(base: EngineConfig) -> list[EngineConfig]:
    """All policies; each one off alone; all of them off; the published set."""
    return [
        replace(base, sharing="multi_level", order="ratio", admission="memory"),
        replace(base, sharing="single_level", order="ratio", admission="memory"),
        replace(base, sharing="none", order="ratio", admission="memory"),
        replace(base, sharing="multi_level", order="fcfs", admission="memory"),
        replace(base, sharing="multi_level", order="ratio", admission="count"),
        replace(base, sharing="none", order="fcfs", admission="count"),
        replace(base, sharing="batchllm", order="ratio", admission="memory"),
    ]


def combinations(base: EngineConfig) -> list[EngineConfig]:
    """Every sharing, order and admission."""
    return [
        replace(base, sharing=sharing, order=order, admission=admission)
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


def summary(configs: Sequence[EngineConfig], medians: dict[str, list[float]]) -> str:
    """Seconds of all workloads side by side: `medians[workload][i]` is of `configs[i]`."""
    heads = ["sharing", "order", "admission", *medians]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for at, config in enumerate(configs):
        seconds = [f"{of[at]:.2f}" for of in medians.values()]
        lines.append("| " + " | ".join([config.sharing, config.order, config.admission, *seconds]) + " |")
    return "\n".join(lines)


def ablation(
    workloads: Annotated[
        list[Path] | None, typer.Argument(help="JSON lines as `engine.bench.workload` writes them.")
    ] = None,
    model: Annotated[str, typer.Option(help="A folder with safetensors, a .gguf file, or 'embedded'.")] = "embedded",
    kv_gib: float = 4.0,
    rounds: Annotated[int, typer.Option(min=1)] = 1,
    precision: str = "float32",
    every: Annotated[bool, typer.Option("--every", help="All combinations of policies.")] = False,
) -> None:
    """Time each of WORKLOADS under sets of policies; seconds of all of them side by side come last."""
    files = resolve_model(model)
    base = precise(EngineConfig(kv_cache_memory=int(kv_gib * 2**30), max_num_batched_tokens=0), precision)
    configs = combinations(base) if every else switched_off(base)
    named = {file.stem: read_workload(file) for file in workloads or ()}
    named = named or {name: list(map(to_request, rows())) for name, rows in WORKLOADS.items()}
    medians: dict[str, list[float]] = {}
    typer.echo(f"{resolve_device(base).described}\n")
    for name, requests in named.items():
        runs: list[list[Timed]] = [[] for _ in configs]
        for _ in range(rounds):
            for config, timed in zip(configs, runs, strict=True):
                timed.append(time_once(files, config, requests))
        medians[name] = [statistics.median(one.seconds for one in timed) for timed in runs]
        typer.echo(f"{name}, {precision}\n\n{markdown(configs, runs)}\n")
    if len(named) > 1:
        typer.echo(summary(configs, medians))


def main() -> None:
    try:
        typer.run(ablation)
    except UserError as problem:
        typer.echo(f"error: {problem}", err=True)
        sys.exit(2)


if __name__ == "__main__":
    main()
