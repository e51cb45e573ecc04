"""What a small model answers in each precision, as JSON: run in another process, as another processor would.

`python -m tests.engine.answers MODEL [no-openmp | no-numba]`.
"""

import json
import sys
from typing import Any

import numpy as np

from engine.device_rates import DeviceRates
from engine.planning.cost import CostModel
from kernels.kv_format import FLOAT32

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


def main(model: str, without: str = "") -> None:
    if without == "no-numba":
        sys.modules.update(dict.fromkeys(("numba", "llvmlite")))  # an import of either fails
    elif without == "no-openmp":
        from kernels.cpu.language import openmp

        openmp.available = lambda: False
    sys.stdout.write(json.dumps(answers(model)))


if __name__ == "__main__":
    main(*sys.argv[1:])
