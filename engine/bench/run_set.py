"""Times a fixed set of small workloads, in each precision, on one engine a precision: `make bench`.

    python -m engine.bench.run_set --model embedded --precision float32 --precision int8

A Markdown table, then a line of JSON. Shapes are those that peers are held to (`examples/peers`), an eighth to a half
of their size, so that all of it takes a few minutes on two cores. `ceiling_fraction` as in `engine.bench.run`.
"""

import json
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Annotated, Any

import typer

from engine.bench.matmul_rate import measure_apart
from engine.bench.timed_run import precise, time_run
from engine.bench.workload import Rows, choice, generate, to_request, tree
from engine.config import EngineConfig
from engine.errors import UserError
from engine.loop.build import build_engine
from engine.model.checkpoint import ModelFiles, resolve_model

WORKLOADS: dict[str, Callable[[], Rows]] = {
    "long-output": partial(generate, groups=2, degree=8, prefix=1000, distinct=100, output=48),
    "short-output": partial(generate, groups=4, degree=8, prefix=512, distinct=64, output=16),
    "long-prefix": partial(generate, groups=1, degree=8, prefix=3500, distinct=200, output=1),
    "tree": partial(tree, instruction=500, documents=4, document=350, rows=8, row=60, output=1),
    "choice": partial(choice, groups=2, degree=8, prefix=1000, distinct=80, labels=4, label_tokens=3),
    "unshared": partial(generate, groups=8, degree=1, prefix=512, distinct=8, output=48),
}
DEFAULT = ("float32", "bfloat16", "bfloat16+int8")


def time_precision(files: ModelFiles, config: EngineConfig, precision: str) -> list[dict[str, Any]]:
    """A report for each workload. The machine's matmul rate is measured behind them, when the engine is gone."""
    started = time.perf_counter()
    engine = build_engine(files, precise(config, precision), detokenize=False)
    load_seconds = time.perf_counter() - started
    try:
        runs = {name: time_run(engine, list(map(to_request, rows()))) for name, rows in WORKLOADS.items()}
        device, shape = engine.runner.device, engine.runner.model.shape
    finally:
        engine.close()
    rate = None
    if device.name == "cpu":
        rate = measure_apart(shape.hidden_size, shape.intermediate_size, device.cores)
    return [
        {
            "workload": name,
            "precision": precision,
            "device": device.described,
            "seconds": round(run.seconds, 3),
            "load_seconds": round(load_seconds, 3),
            "computed_prompt_tokens": run.plan.summary.computed_tokens,
            "generated_tokens": sum(len(output.token_ids) for output in run.outputs),
            "ceiling_fraction": None if rate is None else round(run.ceiling_fraction(rate), 4),
        }
        for name, run in runs.items()
    ]


def markdown(reports: Sequence[dict[str, Any]]) -> str:
    """Seconds, and the ceiling's fraction in brackets: a row a workload, a column a precision; the device above."""
    precisions = list(dict.fromkeys(report["precision"] for report in reports))
    lines = [*sorted({report["device"] for report in reports}), ""]
    lines += [f"| workload | {' | '.join(precisions)} |", "|---" * (len(precisions) + 1) + "|"]
    for name in WORKLOADS:
        cells = [name]
        for report in reports:
            if report["workload"] == name:
                fraction = report["ceiling_fraction"]
                cells.append(f"{report['seconds']:.2f} s" + ("" if fraction is None else f" ({fraction:.2f})"))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def bench_set(
    model: Annotated[str, typer.Option(help="A folder with safetensors, a .gguf file, or 'embedded'.")] = "embedded",
    kv_gib: float = 4.0,
    precision: Annotated[list[str], typer.Option()] = list(DEFAULT),  # noqa: B006
) -> None:
    """Time all workloads in each precision."""
    files, config = resolve_model(model), EngineConfig(kv_cache_memory=int(kv_gib * 2**30), max_num_batched_tokens=0)
    reports = [report for one in precision for report in time_precision(files, config, one)]
    typer.echo(markdown(reports))
    typer.echo(json.dumps(reports))


def main() -> None:
    try:
        typer.run(bench_set)
    except UserError as problem:
        typer.echo(f"error: {problem}", err=True)
        sys.exit(2)


if __name__ == "__main__":
    main()
