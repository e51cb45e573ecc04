"""The harness may fetch its data sets where our own packages would have switched the hub off."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize(("said", "offline"), [(None, False), ("1", True)])
def test_the_hub_is_as_the_user_has_it(said: str | None, offline: bool) -> None:
    program = "import trunkline; trunkline.TrunklineLM; from huggingface_hub.constants import *; print(HF_HUB_OFFLINE)"
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=kept | ({} if said is None else {"HF_HUB_OFFLINE": said}) | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == [str(offline)]
