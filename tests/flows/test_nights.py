"""Some nights of prefect.yaml's deployments, on a real Prefect server with real workers, in five minutes at most."""

import json
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from tokenizers import Tokenizer

from tasks.query import query
from tasks.storage.manifests import read_manifests
from tasks.storage.output_folder import OutputFolder
from tests.flows.prefect_api import get, last_run, post, wait_for

pytestmark = pytest.mark.nightly

ROOT = Path(__file__).parents[2]

NIGHTLY = "prefect deployment run trunkline-score/nightly"
RETRY = "prefect deployment run trunkline-score/retry-failed"
AD_HOC = "prefect deployment run trunkline-score/ad-hoc --param job=examples/classify.yaml"
TEMPLATE = "prefect work-pool get-default-base-job-template --type process"
LIMIT = "prefect work-pool update trunkline --concurrency-limit 1"
WORKER = "prefect worker start --pool trunkline"
WATCHED = ("--watch", "--watch-timeout", "180")
DEADLY = " zebra"  # one token, on which the engine dies the first night
SAVE_SECRET = "from prefect.blocks.system import Secret; Secret(value='hush-hush').save('source-token')"
SECRET = "{{ prefect.blocks.secret.source-token }}"


class Nights:
    """A job whose table grows, its folder, and what Prefect has of its runs."""

    def __init__(self, processes: Any, folder: Path, model: Path) -> None:
        self.processes = processes
        self.job_file = folder / "job.yaml"
        self.output = OutputFolder(folder / "out")
        self._table = folder / "rows.parquet"
        job = {
            "name": "nights",
            "source": {"parquet": str(self._table), "id": "row_id"},
            "prompt": {"column": "text"},
            "task": {"type": "generate"},
            "sampling": {"max_tokens": 40, "ignore_eos": True},
            "model": {"path": str(model)},
            "engine": {"kv_cache_memory": "64MiB"},
            "shard_seconds": 0.1,
            "output": str(self.output.root),
        }
        self.job_file.write_text(yaml.safe_dump(job))

    def grow_to(self, rows: int) -> None:
        texts = [f"{'The parcel came late.' if i % 2 else 'A kind answer.'} Case {i}:" for i in range(rows)]
        texts[3] += DEADLY
        pq.write_table(pa.table({"row_id": [f"row-{i}" for i in range(rows)], "text": texts}), self._table)

    def ask(self, statement: str) -> list[dict[str, Any]]:
        with query(self.output.root, statement) as result:
            rows: list[dict[str, Any]] = result.table().to_pylist()
            return rows

    def ends(self) -> dict[str, int]:
        """Rows with a result, rows with an error, and ids that have either."""
        [counts] = self.ask(
            "select (select count(*) from results)::int as results, (select count(*) from errors)::int as errors, "
            "(select count(*) from (select custom_id from results union select custom_id from errors))::int as rows"
        )
        return counts

    def scored(self) -> list[tuple[str, int]]:
        """Of each run, how it ended and the rows that it scored, in their order."""
        runs = self.ask("select status, coalesce(scored, 0)::int as scored from runs order by sequence")
        return [(run["status"], run["scored"]) for run in runs]

    def state(self) -> str:
        return str(last_run(self.processes.api)["state_type"])

    def process(self) -> psutil.Process:
        """The one that runs the last flow run, whose parent is the worker."""
        number = str(last_run(self.processes.api)["id"])
        all_of_it = {
            one.pid: one
            for one in psutil.process_iter(["environ"])
            if (one.info["environ"] or {}).get("PREFECT__FLOW_RUN_ID") == number
        }
        [first] = [one for one in all_of_it.values() if one.ppid() not in all_of_it]
        return first

    def wait_for_shards(self) -> None:
        """Until the run that goes on has committed two of its own."""
        before = self.committed()
        wait_for(lambda: self.committed() >= before + 2)

    def committed(self) -> int:
        return len(read_manifests(self.output)) if self.output.manifests.is_dir() else 0


@pytest.fixture(scope="module")
def nights(
    prefect_processes: Any, tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, write_deployments: Any
) -> Nights:
    """prefect.yaml deployed with a job of its own; the pool puts a secret into the runs' environment."""
    folder = tmp_path_factory.mktemp("nights")
    nights = Nights(prefect_processes, folder, tiny_model)
    deployments = write_deployments(folder / "prefect.yaml", nights.job_file)
    pool = json.loads(prefect_processes.run(TEMPLATE))
    pool["variables"]["properties"]["env"]["default"] = {"SOURCE_TOKEN": SECRET}
    (folder / "pool.json").write_text(json.dumps(pool))
    prefect_processes.run("python -c", SAVE_SECRET)
    prefect_processes.run("prefect work-pool create trunkline --type process")
    prefect_processes.run(f"prefect work-pool update trunkline --base-job-template {folder / 'pool.json'}")
    prefect_processes.run(LIMIT)
    prefect_processes.run("prefect --no-prompt deploy --all", "--prefect-file", str(deployments))
    return nights


def test_three_nights(nights: Nights, tiny_model: Path) -> None:
    run = nights.processes.run
    [deadly] = Tokenizer.from_file(str(tiny_model / "tokenizer.json")).encode(DEADLY, add_special_tokens=False).ids
    nights.grow_to(8)
    with nights.processes.started(f"FAILPOINT=engine.token.{deadly}:1:crash {WORKER}"):
        run(NIGHTLY, *WATCHED)
    assert nights.ends() == {"results": 7, "errors": 1, "rows": 8}
    assert nights.ask("select custom_id, error_type from errors") == [
        {"custom_id": "row-3", "error_type": "ENGINE_CRASH"}
    ]

    nights.grow_to(12)
    with nights.processes.started(WORKER):
        run(NIGHTLY, *WATCHED)
        assert nights.ends() == {"results": 11, "errors": 1, "rows": 12}
        run(RETRY, *WATCHED)
    assert nights.ends() == {"results": 12, "errors": 0, "rows": 12}
    assert nights.scored() == [("completed", 8), ("completed", 4), ("completed", 1)]

    nights.grow_to(1500)
    with nights.processes.started(WORKER) as worker:
        run(NIGHTLY)
        nights.wait_for_shards()
        environment = nights.process().environ()
        assert (environment["SOURCE_TOKEN"], environment["HF_HUB_OFFLINE"]) == ("hush-hush", "1")
        worker.kill()
        worker.wait()
        assert nights.state() == "RUNNING"
        assert nights.scored()[3][0] == "running"
    # The run has a process of its own, and goes on.
    wait_for(lambda: nights.state() != "RUNNING")
    assert nights.state() == "COMPLETED"
    assert nights.ends() == {"results": 1500, "errors": 0, "rows": 1500}
    assert nights.scored()[3:] == [("completed", 1488)]

    known = [
        json.dumps(get(nights.processes.api, path))
        for path in ("deployments/name/trunkline-score/nightly", "work_pools/trunkline")
    ]
    assert SECRET in known[1]
    logs = [path.read_text() for path in nights.processes.folder.glob("*.log")]
    assert not any("hush-hush" in text for text in (*known, *logs))


@pytest.mark.fault(3)
def test_the_machine_dies(nights: Nights, tmp_path: Path, tiny_model: Path) -> None:
    """Worker and run are killed together: the next run waits until Prefect knows, and scores what is left.

    45 seconds without a heartbeat in the place of automations.yaml's 90.
    """
    run = nights.processes.run
    automations = yaml.safe_load((ROOT / "automations.yaml").read_text())
    automations["automations"][0]["trigger"]["within"] = 45
    (tmp_path / "automations.yaml").write_text(yaml.safe_dump(automations))
    run(f"prefect automation create --from-file {tmp_path / 'automations.yaml'}")
    other = Nights(nights.processes, tmp_path, tiny_model)
    other.grow_to(1500)
    job = ("--param", f"job={other.job_file}")
    with nights.processes.started(WORKER) as worker:
        run(NIGHTLY, *job)
        other.wait_for_shards()
        process = other.process()
        worker.kill()
        process.kill()
        worker.wait()
        psutil.wait_procs([process], timeout=20)
    assert other.state() == "RUNNING"  # nobody has told Prefect
    assert other.ask("select status from runs") == [{"status": "interrupted"}]
    done = other.ends()["results"]
    assert 0 < done < 1500
    with nights.processes.started(WORKER):
        run(NIGHTLY, *job, *WATCHED)
        assert other.ends() == {"results": 1500, "errors": 0, "rows": 1500}
        assert other.scored()[1:] == [("completed", 1500 - done)]
        run(AD_HOC.replace("examples/classify.yaml", str(other.job_file)), *WATCHED)
    assert other.scored()[2:] == [("completed", 0)]
    ends = post(nights.processes.api, "flow_runs/filter", {"sort": "START_TIME_DESC", "limit": 3})
    assert [one["state_type"] for one in ends] == ["COMPLETED", "COMPLETED", "CRASHED"]
