"""Times whole runs: `trunkline score` on a table of texts that share prefixes.

    python -m tests.flows.time_runs orchestration --groups 160
    python -m tests.flows.time_runs workers dask --rounds 3

`orchestration` sets a run against the bare engine: the same prompts, planned and run in a process that does nothing
else. `workers` sets two workers of a thread each against one. Sides alternate, each in a process of its own. The last
line printed is JSON. Texts are made of words that are one token each, so that a prompt has as many tokens as it says.
"""

import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import typer
import yaml

from engine.bench.workload import FIRST_TOKEN, generate
from engine.model.checkpoint import resolve_model
from engine.model.tokenizer import load_tokenizer
from tasks.storage.output_folder import OutputFolder
from tasks.storage.run_record import read_records
from tasks.storage.step_curve import read_curve

KV_GIB = 4
# A prompt's own tokens, and those that all of a group share; how many are written to it, by rows of a group.
SHAPE = {"degree": 16, "prefix": 1024, "distinct": 64, "output": 32}
WORD = re.compile(r" [a-z]{2,}")

app = typer.Typer(add_completion=False)


@dataclass(frozen=True, slots=True)
class Timed:
    """Of a run. `seconds` by the clock, from the command to its end; `run_seconds` as its record has them, loading
    included; `computing_seconds` in which an engine was in a step.
    """

    seconds: float
    run_seconds: float
    computing_seconds: float
    computed_prompt_tokens: int
    saved_tokens: int


def write_inputs(folder: Path, groups: int) -> None:
    """`rows.parquet` with the texts, `rows.jsonl` with their tokens, and the job over them."""
    tokenizer = load_tokenizer(resolve_model("embedded"))
    texts = [str(tokenizer.decode([token])) for token in range(len(tokenizer))]
    words = [token for token, text in enumerate(texts) if WORD.fullmatch(text)]
    drawn = generate(groups, **SHAPE, vocab=FIRST_TOKEN + len(words))
    for row in drawn:
        row["prompt_token_ids"] = [words[token - FIRST_TOKEN] for token in row["prompt_token_ids"]]
    prompts = [tokenizer.decode(row["prompt_token_ids"]) for row in drawn]
    for row, encoded in zip(drawn, tokenizer(prompts)["input_ids"], strict=True):
        assert row["prompt_token_ids"] == encoded, row["id"]
    table = {"id": [row["id"] for row in drawn], "text": prompts}
    pq.write_table(pa.table(table), folder / "rows.parquet")
    (folder / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in drawn))
    job = {
        "name": "timed",
        "source": {"parquet": "rows.parquet", "id": "id"},
        "prompt": {"column": "text"},
        "task": {"type": "generate"},
        "sampling": {"max_tokens": SHAPE["output"], "ignore_eos": True},
        "model": {"path": "embedded", "dtype": "float32"},
        "engine": {"device": "cpu", "kv_cache_memory": f"{KV_GIB}GiB"},
        "output": "out",
    }
    (folder / "job.yaml").write_text(yaml.safe_dump(job))


def run(folder: Path, *options: str, **environment: str) -> Timed:
    """A run of the job in a new output folder; all rows must have an answer."""
    with tempfile.TemporaryDirectory(dir=folder) as out:
        command = ["trunkline", "score", "job.yaml", "--output", f"{out}/run", *options]
        started = time.perf_counter()
        _call(folder, [str(Path(sys.executable).with_name(command[0])), *command[1:]], environment)
        seconds = time.perf_counter() - started
        output = OutputFolder(Path(out, "run"))
        [record] = read_records(output)
        assert (record.status, record.row_errors, record.rows_done) == ("completed", 0, record.rows)
        computing = read_curve(output, record.run_id).computing_seconds
    assert record.seconds is not None
    assert record.prompt_tokens is not None
    assert record.computed_prompt_tokens is not None
    saved = record.prompt_tokens - record.computed_prompt_tokens
    return Timed(round(seconds, 2), record.seconds, round(computing, 2), record.computed_prompt_tokens, saved)


def bare(folder: Path) -> dict[str, Any]:
    command = ["-m", "engine.bench.run", "rows.jsonl", "--kv-gib", str(KV_GIB)]
    report: dict[str, Any] = json.loads(_call(folder, [sys.executable, *command], {}).splitlines()[-1])
    return {name: report[name] for name in ("seconds", "load_seconds", "computed_prompt_tokens", "rows")}


def _call(folder: Path, command: list[str], environment: dict[str, str]) -> str:
    done = subprocess.run(
        command, cwd=folder, env=os.environ | environment, capture_output=True, text=True, timeout=3600, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@app.command()
def orchestration(groups: int = 160, rounds: int = 1) -> None:
    """A run against the bare engine."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_inputs(folder, groups)
        runs, engines = [], []
        for _ in range(rounds):
            engines.append(bare(folder))
            typer.echo(json.dumps(engines[-1]))
            runs.append(run(folder))
            typer.echo(json.dumps(asdict(runs[-1])))
    engine = statistics.median(each["seconds"] + each["load_seconds"] for each in engines)
    whole = statistics.median(each.run_seconds for each in runs)
    not_computing = statistics.median(1 - each.computing_seconds / each.run_seconds for each in runs)
    found = {"engine_seconds": round(engine, 2), "run_seconds": round(whole, 2)}
    typer.echo(json.dumps(found | {"more": round(whole / engine - 1, 4), "not_computing": round(not_computing, 4)}))


@app.command()
def workers(runner: str, groups: int = 8, rounds: int = 3) -> None:
    """Two workers of a thread each against one."""
    timed: dict[int, list[Timed]] = {1: [], 2: []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_inputs(folder, groups)
        for _ in range(rounds):
            for number, times in timed.items():
                options = [f"--set=runner={runner}", f"--set=engine.workers={number}"]
                times.append(run(folder, *options, OMP_NUM_THREADS=str(number)))
                typer.echo(json.dumps({"workers": number} | asdict(times[-1])))
    one, two = ([each.computing_seconds for each in times] for times in timed.values())
    saved = [statistics.median(each.saved_tokens for each in times) for times in timed.values()]
    seconds = [statistics.median(one), statistics.median(two)]
    found = {"computing_seconds": seconds, "times": round(seconds[0] / seconds[1], 3)}
    typer.echo(json.dumps(found | {"saved_less": round(1 - saved[1] / saved[0], 4)}))


if __name__ == "__main__":
    app()
