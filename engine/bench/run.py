"""Times the engine on a workload of JSON lines; the last line printed is JSON.

    python -m engine.bench.run WORKLOAD --model DIR [--kv-gib 4] [--dtype float32] [--sharing multi_level] ...

`engine.bench.workload` writes and describes the lines. `seconds` covers planning and running; loading is apart, as
`load_seconds`. `ceiling_fraction` is the time that the plan's matmul and attention FLOPs would take at
`matmul_flops_per_second`, which float32 matmuls reach right after the run, over the time taken (CPU only).
`other_rss_bytes` is the peak resident memory beside weights and used KV.
"""

import json
import resource
import sys
import time
from contextlib import nullcontext
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, get_args

import typer

from engine.bench.matmul_rate import measure_apart
from engine.bench.timed_run import TimedRun, time_run
from engine.bench.workload import read_workload
from engine.config import ADMISSION, DETERMINISM, KV_CACHE_DTYPE, ORDER, QUANTIZATION, SHARING, Dtype, EngineConfig
from engine.errors import UserError
from engine.loop.build import build_engine
from engine.loop.engine import Engine
from engine.loop.trace import TraceWriter
from engine.model.checkpoint import resolve_model
from engine.request import RequestOutput


def answers(outputs: list[RequestOutput]) -> dict[str, Any]:
    return {
        output.request_id: [[score.logprob, score.is_greedy] for score in output.label_scores]
        if output.label_scores is not None
        else list(output.token_ids)
        for output in outputs
    }


def _one_of(option: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise UserError(f"{option}: {value!r} is not built; one of {', '.join(allowed)}")


def bench(
    workload: Path,
    model: Annotated[str, typer.Option(help="A folder with safetensors, a .gguf file, or 'embedded'.")] = "embedded",
    kv_gib: float = 4.0,
    dtype: str = "float32",
    quantization: str = "none",
    kv_cache_dtype: Annotated[str, typer.Option(help="fp8: 8-bit floats, on a GPU that has them.")] = "auto",
    sharing: str = "multi_level",
    order: str = "ratio",
    admission: str = "memory",
    determinism: Annotated[str, typer.Option(help="strict: the same to the last bit in any batch.")] = "default",
    max_num_batched_tokens: Annotated[int, typer.Option(min=0, help="Of a step; 0: measured, then cached.")] = 0,
    trace: Annotated[Path | None, typer.Option(help="Write a JSON line for each of the engine's steps.")] = None,
    outputs: Annotated[Path | None, typer.Option(help="Write {id: token ids} or {id: [[logprob, is_greedy]]}.")] = None,
) -> None:
    """Time the engine on WORKLOAD."""
    choices = [("--dtype", dtype, get_args(Dtype)), ("--quantization", quantization, QUANTIZATION)]
    choices += [("--kv-cache-dtype", kv_cache_dtype, KV_CACHE_DTYPE)]
    choices += [("--sharing", sharing, SHARING), ("--order", order, ORDER), ("--admission", admission, ADMISSION)]
    choices += [("--determinism", determinism, DETERMINISM)]
    for option, value, allowed in choices:
        _one_of(option, value, allowed)
    config = EngineConfig(
        dtype=dtype,  # type: ignore[arg-type]
        quantization=quantization,  # type: ignore[arg-type]
        kv_cache_dtype=kv_cache_dtype,  # type: ignore[arg-type]
        kv_cache_memory=int(kv_gib * 2**30),
        max_num_batched_tokens=max_num_batched_tokens,
        sharing=sharing,  # type: ignore[arg-type]
        order=order,  # type: ignore[arg-type]
        admission=admission,  # type: ignore[arg-type]
        determinism=determinism,  # type: ignore[arg-type]
    )
    requests = read_workload(workload)
    started = time.perf_counter()
    with nullcontext() if trace is None else TraceWriter(trace) as on_step:
        engine = build_engine(resolve_model(model), config, detokenize=False, on_step=on_step)
        load_seconds = time.perf_counter() - started
        run = time_run(engine, requests)
        report = report_of(engine, run, load_seconds)
    if outputs is not None:
        outputs.write_text(json.dumps(answers(run.outputs)))
    print(json.dumps(report))


def report_of(engine: Engine, run: TimedRun, load_seconds: float) -> dict[str, Any]:
    """The last line's figures. Closes the engine, since what the machine's matmuls reach is measured without it."""
    counters, summary = engine.counters(), run.plan.summary
    device, shape, weight_bytes = engine.runner.device, engine.runner.model.shape, engine.runner.model.weight_bytes
    peak_rss_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    engine.close()
    on_cpu = device.name == "cpu"
    rate = measure_apart(shape.hidden_size, shape.intermediate_size, device.cores) if on_cpu else None
    return {
        "seconds": round(run.seconds, 3),
        "load_seconds": round(load_seconds, 3),
        "rows": len(run.outputs),
        "prompt_tokens": summary.prompt_tokens,
        "generated_tokens": counters.generated_tokens,
        "computed_prompt_tokens": counters.computed_prompt_tokens,
        "saved_fraction": round(1 - counters.computed_prompt_tokens / summary.prompt_tokens, 4),
        "ideal_saved_fraction": round(summary.ideal_saved_fraction, 4),
        "peak_kv_bytes": counters.peak_kv_bytes,
        "peak_rss_bytes": peak_rss_bytes,
        "other_rss_bytes": peak_rss_bytes - weight_bytes - counters.peak_kv_bytes,
        "matmul_flops_per_second": rate,
        "ceiling_fraction": None if rate is None else round(run.ceiling_fraction(rate), 4),
        "dtype": device.dtype,
        "quantization": engine.config.quantization,
        "kv_cache_dtype": engine.config.kv_cache_dtype,
        "determinism": engine.config.determinism,
        "device": device.described,
        "version": version("trunkline"),
        "torch": version("torch"),
        "max_num_batched_tokens": engine.config.max_num_batched_tokens,
        "steps": counters.steps,
        "preemptions": counters.preemptions,
    }


def main() -> None:
    try:
        typer.run(bench)
    except UserError as problem:
        print(f"error: {problem}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
