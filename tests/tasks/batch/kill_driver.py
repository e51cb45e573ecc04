"""A batch on the fakes, in a process that may be killed: `python -m tests.tasks.batch.kill_driver FOLDER`."""

import os
import sys
from pathlib import Path

import pytest

from tests.tasks.batch.batch_steps import COMPLETIONS, batch_of, request, run_batch
from tests.tasks.fakes import FakeWorkers, write_model
from tests.tasks.steps import use_fakes


def main(folder: Path) -> None:
    os.environ["TRUNKLINE_CACHE"] = str(folder / "cache")
    os.environ["XDG_STATE_HOME"] = str(folder / "state")
    use_fakes(pytest.MonkeyPatch(), FakeWorkers())
    lines = [request(f"r{i}", COMPLETIONS, prompt=f"text {i}", temperature=0, max_tokens=4) for i in range(8)]
    batch = batch_of(folder, [*lines, "not JSON", lines[0]], write_model(folder / "model"))
    run_batch(batch, shard_seconds=1e-4)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
