"""A run whose engine has three ranks: the page's own command, on the model that is there anyway."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
from prefect.settings import PREFECT_API_URL

from tests.tasks.steps import ask

ROOT = Path(__file__).parents[2]
ALONE = "trunkline score examples/classify.yaml --output runs/alone --set engine.device=cpu"
PARTS = (
    "OMP_NUM_THREADS=3 trunkline score examples/classify.yaml --output runs/parts"
    " --set engine.device=cpu --set engine.tensor_parallel=3"
)
ANSWERS = "select custom_id, label, label_probs from results order by custom_id"


def run(command: str, folder: Path) -> str:
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "PREFECT_API_URL": PREFECT_API_URL.value(),
    }
    done = subprocess.run(
        ["/bin/sh", "-c", command], cwd=folder, env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.mark.nightly
@pytest.mark.usefixtures("prefect_server")
def test_three_ranks_of_the_embedded_model_answer_as_one_does(tmp_path: Path) -> None:
    (tmp_path / "examples").mkdir()
    (tmp_path / "examples" / "classify.yaml").write_text((ROOT / "examples" / "classify.yaml").read_text())
    run(f"{sys.executable} -m examples.packages --packages 3", tmp_path)
    answers: list[list[dict[str, Any]]] = []
    for command, folder in ((ALONE, "alone"), (PARTS, "parts")):
        run(command, tmp_path)
        answers.append(ask(tmp_path / "runs" / folder, ANSWERS))
    alone, parts = answers
    assert len(parts) == len(alone) > 20
    for ours, theirs in zip(parts, alone, strict=True):
        assert (ours["custom_id"], ours["label"]) == (theirs["custom_id"], theirs["label"])
        assert dict(ours["label_probs"]) == pytest.approx(dict(theirs["label_probs"]), abs=1e-4)
    assert not [one for one in psutil.process_iter(["cmdline"]) if _is_rank_of(one, tmp_path)]


def _is_rank_of(process: psutil.Process, folder: Path) -> bool:
    return "engine.ranks.rank_server" in " ".join(process.info["cmdline"] or ()) and process.cwd() == str(folder)
