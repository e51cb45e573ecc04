"""Some nights of prefect.yaml's deployments, on a real Prefect server with real workers, in five minutes at most."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from tokenizers import Tokenizer

from tasks.query import query
from tasks.storage.manifests import read_manifests
from tasks.storage.output_folder import OutputFolder
from tests.flows.prefect_api import last_run, wait_for

pytestmark = pytest.mark.nightly

WATCHED = ("--watch", "--watch-timeout", "180")
WORKER = "prefect worker start --pool trunkline"
DEADLY = " zebra"  # one token, on which the engine dies the first night


class Nights:
    """A job whose table grows, its folder, and what Prefect has of its runs."""

    def __init__(self, processes: Any, folder: Path, job: dict[str, Any]) -> None:
        self.processes = processes
        self.output = OutputFolder(Path(job["output"]))
        self._table = folder / "rows.parquet"

    def grow_to(self, rows: int) -> None:
        texts = [f"{'The parcel came late.' if i % 2 else 'A kind answer.'} Case {i}:" for i in range(rows)]
        texts[3] += DEADLY
        pq.write_table(pa.table({"row_id": [f"row-{i}" for i in range(rows)], "text": texts}), self._table)

    def run(self, deployment: str, *more: str) -> None:
        self.processes.run(f"prefect deployment run trunkline-score/{deployment}", *more)

    def ask(self, statement: str) -> list[dict[str, Any]]:
        with query(self.output.root, statement) as result:
            rows: list[dict[str, Any]] = result.table().to_pylist()
            return rows

    def ends(self) -> dict[str, int]:
        [counts] = self.ask(
            "select (select count(*) from results)::int as results, (select count(*) from errors)::int as errors, "
            "(select count(*) from (select custom_id from results union select custom_id from errors))::int as rows"
        )
        return counts

    def scored(self) -> list[tuple[str, int]]:
        """Of each run, its end and the rows that it scored, in their order."""
        runs = self.ask("select status, coalesce(scored, 0)::int as scored from runs order by sequence")
        return [(run["status"], run["scored"]) for run in runs]

    def state(self) -> str:
        return str(last_run(self.processes.api)["state_type"])


@pytest.fixture(scope="module")
def nights(
    prefect_processes: Any, tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, write_deployments: Any
) -> Nights:
    folder = tmp_path_factory.mktemp("nights")
    job = {
        "name": "nights",
        "source": {"parquet": str(folder / "rows.parquet"), "id": "row_id"},
        "prompt": {"column": "text"},
        "task": {"type": "generate"},
        "sampling": {"max_tokens": 40, "ignore_eos": True},
        "model": {"path": str(tiny_model)},
        "engine": {"kv_cache_memory": "64MiB"},
        "shard_seconds": 0.1,
        "output": str(folder / "out"),
    }
    (folder / "job.yaml").write_text(yaml.safe_dump(job))
    deployments = write_deployments(folder / "prefect.yaml", folder / "job.yaml")
    prefect_processes.run("prefect work-pool create trunkline --type process")
    prefect_processes.run("prefect --no-prompt deploy --all", "--prefect-file", str(deployments))
    return Nights(prefect_processes, folder, job)


def test_three_nights(nights: Nights, tiny_model: Path) -> None:
    [deadly] = Tokenizer.from_file(str(tiny_model / "tokenizer.json")).encode(DEADLY, add_special_tokens=False).ids
    nights.grow_to(8)
    with nights.processes.started(f"FAILPOINT=engine.token.{deadly}:1:crash {WORKER}"):
        nights.run("nightly", *WATCHED)
    assert nights.ends() == {"results": 7, "errors": 1, "rows": 8}
    assert nights.ask("select custom_id, error_type from errors") == [
        {"custom_id": "row-3", "error_type": "ENGINE_CRASH"}
    ]

    nights.grow_to(12)
    with nights.processes.started(WORKER):
        nights.run("nightly", *WATCHED)
        assert nights.ends() == {"results": 11, "errors": 1, "rows": 12}
        nights.run("retry-failed", *WATCHED)
        assert nights.ends() == {"results": 12, "errors": 0, "rows": 12}
        assert nights.scored() == [("completed", 8), ("completed", 4), ("completed", 1)]

    nights.grow_to(1500)
    committed = len(read_manifests(nights.output))
    with nights.processes.started(WORKER) as worker:
        nights.run("nightly")
        wait_for(lambda: len(read_manifests(nights.output)) > committed + 1)
        worker.kill()
        worker.wait()
        assert nights.state() == "RUNNING"
        assert nights.ask("select status from runs order by sequence desc limit 1") == [{"status": "running"}]
    # The run has a process of its own, and goes on.
    wait_for(lambda: nights.state() != "RUNNING")
    assert nights.state() == "COMPLETED"
    assert nights.ends() == {"results": 1500, "errors": 0, "rows": 1500}
    assert nights.scored()[3:] == [("completed", 1488)]
