"""What a small model answers in each precision, as JSON: run in other processes, as other processors would.

`python -m tests.engine.answers` has imported torch and transformers, and asked nothing of the processor, when it forks
for each line that it reads; `Forks` writes them.
"""

import importlib
import json
import os
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Any

import numpy as np

from engine.device_rates import DeviceRates
from engine.planning.cost import CostModel
from kernels.kv_format import FLOAT32

IMPORTED = ("torch", "transformers.generation", "transformers.models.llama.modeling_llama")
PRECISIONS = (("float32", "none"), ("bfloat16", "none"), ("float32", "int8"), ("bfloat16", "int8"))


def answers(model: str) -> dict[str, Any]:
    """By precision: `texts` (tokens), `labels` (their log-likelihoods), and whether its layers were fused."""
    from engine.config import EngineConfig
    from engine.forward.cpu.fused_layer import FusedLayer
    from engine.loop.build import build_engine
    from engine.model.checkpoint import load_shape, resolve_model
    from engine.planning.planner import make_plan, shard_work
    from engine.request import Request
    from engine.sampling_params import SamplingParams

    draw = np.random.default_rng(0)
    stem = draw.integers(100, 40_000, 70, dtype=np.int32)
    labels = tuple(draw.integers(100, 40_000, size, dtype=np.int32) for size in (1, 2, 3))
    requests = []
    for row in range(12):
        prompt = np.append(stem, draw.integers(100, 40_000, 1 + row, dtype=np.int32))
        wants = labels if row % 2 else None
        requests.append(Request(str(row), prompt, SamplingParams(max_tokens=8, ignore_eos=True), wants))
    files, made = resolve_model(model), {}
    for dtype, quantization in PRECISIONS:
        config = EngineConfig(device="cpu", dtype=dtype, quantization=quantization, kv_cache_memory=2**24)
        engine = build_engine(files, config, detokenize=False)
        plan = make_plan(requests, config, CostModel(load_shape(files), FLOAT32, DeviceRates(1e9, 1e9)))
        outputs = [
            output
            for shard in plan.shards
            for output in engine.submit(shard_work(plan, shard, requests)).result(timeout=120)
        ]
        engine.close()
        outputs.sort(key=lambda output: int(output.request_id))
        made[f"{dtype} {quantization}"] = {
            "texts": [list(map(int, output.token_ids)) for output in outputs if output.label_scores is None],
            "labels": [[score.logprob for score in output.label_scores] for output in outputs if output.label_scores],
            "fused": any(isinstance(module, FusedLayer) for module in engine.runner.model.body.modules()),
        }
    return made


def main() -> None:
    """A fork for each line `{"model": , "without": , "environment": , "file": }`, and a line when it has ended."""
    from engine.process.importing import importing

    with importing():
        for name in IMPORTED:
            importlib.import_module(name)
    assert not {"llvmlite", "numba", "kernels.processor"} & sys.modules.keys(), "they look at the environment"
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            _answer(**json.loads(line))
        sys.stdout.write(f"{os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])}\n")
        sys.stdout.flush()


def _answer(model: str, without: str, environment: dict[str, str], file: str) -> None:
    code = 1
    try:
        os.environ.update(environment)
        if without == "no-numba":
            sys.modules.update(dict.fromkeys(("numba", "llvmlite")))  # an import of either fails
        elif without == "no-openmp":
            from kernels.cpu.language import openmp

            openmp.available = lambda: False
        Path(file).write_text(json.dumps(answers(model)))
        code = 0
    except BaseException:
        Path(file).write_text(traceback.format_exc())
    finally:
        os._exit(code)


class Forks:
    """Of one process; ends with the `with`."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self._file = folder / "answers.json"
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.engine.answers"],
            cwd=Path(__file__).parents[2],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> "Forks":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()  # it ends with its input

    def answers(self, model: Path, without: str = "", **environment: str) -> Any:
        asked = {"model": str(model), "without": without, "environment": environment, "file": str(self._file)}
        self._file.unlink(missing_ok=True)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{json.dumps(asked)}\n")
        self._process.stdin.flush()
        code = self._process.stdout.readline()
        said = self._file.read_text() if self._file.exists() else ""
        assert code == "0\n", f"exit code {code}{said}"
        return json.loads(said)


if __name__ == "__main__":
    main()
