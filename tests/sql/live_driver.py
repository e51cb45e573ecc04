"""A run on the fakes in a process of its own, for a test that looks at it from outside.

`python -m tests.sql.live_driver FOLDER`, with `FAILPOINT` where it is to hang or die.
"""

import sys
from pathlib import Path

import pytest

from tests.tasks.fakes import FakeWorkers, job_content, write_model
from tests.tasks.steps import make_job, run_steps, use_fakes

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    use_fakes(pytest.MonkeyPatch(), FakeWorkers())
    write_model(folder / "model")
    source = {"parquet": str(folder / "rows.parquet")}
    run_steps(make_job(job_content(folder, source, shard_seconds=1e-4)))
