"""Times a workload on one rank, and on two: a thread each.

    python -m engine.bench.workload generate --groups 4 --degree 8 --prefix 512 --distinct 64 --output 16 > rows.jsonl
    python -m tests.engine.ranks.compare_ranks rows.jsonl --rounds 3

The model is a random one of SmolLM2-135M's sizes, but for its heads: two ranks do not divide 9 and 3. Each run is a
process of its own, and sides alternate. The last lines printed are JSON: the least seconds from the first request to
the last answer, with the model loaded; and the median of the processor's own time of the rank that had the most, which
others on the machine disturb less.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated

import psutil
import typer

SIDES = (1, 2)
HEADS, KV_HEADS, HEAD_DIM = 8, 4, 72


def write_model(folder: Path) -> Path:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=49_152,
        hidden_size=HEADS * HEAD_DIM,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def run_once(workload: Path, model: Path, ranks: int) -> None:
    """Prints both seconds, and the sum of all tokens that came: the same on each side, but for ties."""
    from engine.bench.workload import read_workload
    from engine.config import EngineConfig
    from engine.loop.batch import plan_requests, run_plan
    from engine.loop.build import build_engine
    from engine.model.checkpoint import resolve_model

    requests, config = read_workload(workload), EngineConfig(device="cpu", dtype="float32", tensor_parallel=ranks)
    engine = build_engine(resolve_model(str(model)), config, detokenize=False)
    plan = plan_requests(engine, requests)
    before, started = _own_seconds(), time.perf_counter()
    outputs = run_plan(engine, plan, requests)
    seconds = time.perf_counter() - started
    own_seconds = max(now - then for now, then in zip(_own_seconds(), before, strict=True))
    engine.close()
    typer.echo(json.dumps([seconds, own_seconds, sum(sum(output.token_ids) for output in outputs)]))


def _own_seconds() -> list[float]:
    """Of the processor, by each rank."""
    process = psutil.Process()
    times = [each.cpu_times() for each in (process, *process.children())]
    return [each.user + each.system for each in times]


def main(workload: Path, rounds: int = 3, model: Annotated[Path | None, typer.Option(hidden=True)] = None) -> None:
    if model is not None:
        run_once(workload, model, int(os.environ["OMP_NUM_THREADS"]))
        return
    took: dict[int, list[tuple[float, float]]] = {ranks: [] for ranks in SIDES}
    with tempfile.TemporaryDirectory() as scratch:
        folder = write_model(Path(scratch))
        for _ in range(rounds):
            for ranks in SIDES:
                environment = os.environ | {"OMP_NUM_THREADS": f"{ranks}"}  # of which each has one
                command = [sys.executable, "-m", __spec__.name, str(workload), "--model", str(folder)]
                done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True, timeout=300)
                seconds, own_seconds, tokens = json.loads(done.stdout.splitlines()[-1])
                took[ranks].append((seconds, own_seconds))
                typer.echo(f"{ranks}: {seconds:.2f} s, {own_seconds:.2f} s of the processor (tokens {tokens})")
    for ranks, each in took.items():
        seconds, own_seconds = zip(*each, strict=True)
        best, median = round(min(seconds), 2), round(statistics.median(own_seconds), 2)
        typer.echo(json.dumps({"ranks": ranks, "best_seconds": best, "own_seconds": median}))


if __name__ == "__main__":
    typer.run(main)
