"""A batch through all steps, as the command does it, without Prefect."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from engine.model.checkpoint import resolve_model
from tasks.batch.batch_run import BatchRun
from tasks.batch.export import Exported, export
from tasks.storage.output_folder import OutputFolder
from tests.tasks.steps import run_steps

Json = dict[str, Any]
SETTINGS = {"engine.device": "cpu", "engine.kv_cache_memory": "64MiB"}
CHAT, COMPLETIONS, EMBEDDINGS = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"
SCORE, RERANK = "/v1/score", "/v1/rerank"


def request(custom_id: str, url: str = CHAT, **body: Any) -> Json:
    if url == CHAT:
        body = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4} | body
    return {"custom_id": custom_id, "method": "POST", "url": url, "body": body}


def batch_of(folder: Path, lines: Sequence[Json | str], model: Path) -> BatchRun:
    source = folder / "in.jsonl"
    source.write_text("".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines))
    return BatchRun(source, folder / "out.jsonl", folder / "errors.jsonl", str(model))


def run_batch(batch: BatchRun, **settings: object) -> Exported:
    batch.check()
    with batch.prepared():
        job = batch.job(SETTINGS | {name.replace("__", "."): value for name, value in settings.items()})
        run_steps(job)
        model = resolve_model(batch.model)
        return export(OutputFolder(job.output_folder), model, batch.model_name, batch.out, batch.errors)


def lines_of(path: Path) -> list[Json]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def by_id(path: Path) -> dict[str, Json]:
    return {line["custom_id"]: line for line in lines_of(path)}
