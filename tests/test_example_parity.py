"""The example's answers on the embedded model, held to transformers without any sharing.

`make parity` compares every row; `make test` the first of each job.
"""

import os
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from engine.device_rates import DeviceRates
from engine.loop.build import build_engine
from engine.model.checkpoint import resolve_model, weights_folder
from engine.planning.cost import CostModel
from engine.planning.planner import make_plan, shard_work
from engine.request import Request
from examples.packages import installed_packages, write_tables
from kernels.kv_format import FLOAT32
from tasks.deduplicate import PENDING, deduplicate_requests
from tasks.extract import extract_rows
from tasks.job.job_file import load_job
from tasks.request.requests import to_requests
from tasks.storage.run import Run, open_run
from tests.engine.oracle import Oracle

ROWS = int(os.environ.get("PARITY_ROWS", "3"))
EXAMPLES = Path(__file__).parents[1] / "examples"


def requests_of(run: Run) -> list[Request]:
    pending = pq.read_table(deduplicate_requests(run, extract_rows(run)).folder / PENDING)
    rows = (row for batch in pending.to_batches() for row in to_requests(batch))
    return list(islice(chain.from_iterable(rows), ROWS))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Has the example's tables."""
    folder = tmp_path_factory.mktemp("example")
    write_tables(folder / "examples" / "data", installed_packages())
    return folder


@pytest.fixture(scope="module")
def oracle() -> Oracle:
    return Oracle(weights_folder(resolve_model("embedded")))


@pytest.mark.parametrize("name", ["classify", "summarise"])
def test_the_example_gives_the_answers_of_transformers(
    name: str, folder: Path, oracle: Oracle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    job = load_job(EXAMPLES / f"{name}.yaml", {"output": str(tmp_path / "out")})
    with open_run(job) as run:
        requests = requests_of(run)
        # Text ends at its stop strings too; what is compared is tokens.
        requests = [replace(request, params=replace(request.params, stop=())) for request in requests]
        config = replace(run.config, kv_cache_memory=2**29)
        engine = build_engine(run.model, config)
        plan = make_plan(requests, engine.config, CostModel(run.shape, FLOAT32, DeviceRates(1e12, 1e12)))
        outputs = [
            output
            for future in [engine.submit(shard_work(plan, shard, requests)) for shard in plan.shards]
            for output in future.result()
        ]
        assert engine.counters().computed_prompt_tokens == plan.summary.computed_tokens
        assert plan.summary.computed_tokens < plan.summary.prompt_tokens
        engine.close()
        assert run.model == resolve_model("embedded")
        by_id = {request.request_id: request for request in requests}
        differences = [oracle.assert_same(by_id[output.request_id], output) for output in outputs]
        told = f"{name}: {len(outputs)} requests, {sum(map(bool, differences))} of them apart"
        print(f"{told}, by at most {max(differences):.2g}")  # noqa: T201
