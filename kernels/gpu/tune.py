"""Times the attention kernel's tiles on the GPU at hand and keeps the fastest, which every engine here then takes.

    python -m kernels.gpu.tune [--heads 32] [--kv-heads 8] [--dim 128]

Give the heads of a model's attention. Without it engines take what the table in `kernels.gpu.tuning.attention_config`
says. Anywhere but on a GPU it says so and ends with code 2.
"""

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from kernels.attention_inputs import AttentionInputs
from kernels.gpu.attention.attention_shape import AttentionShape
from kernels.gpu.attention.launch_tables import launch_tables
from kernels.gpu.attention.prefix_attention import prefix_shared_attention
from kernels.gpu.bench import captured, milliseconds
from kernels.gpu.tuning.attention_config import AttentionConfig
from kernels.gpu.tuning.tuned import DECODE, tune
from kernels.segments import Ints, Segment, Segments

PREFIX, PAGE, REPEATS = 2048, 64, 10
# A step that decodes, and its rows' own keys.
DECODE_ROWS, OWN_KEYS = 256, 512
# Stacked query rows of a step's widest segment.
WIDEST = (64, 128, 256, 512, 1024, 2048, 4096, 8192)


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """Rows behind a prefix of `PREFIX` cached keys; `slots` of the cache hold all that is read."""

    segments: Segments
    positions: Ints
    slots: int


Time = Callable[[Step, AttentionShape, AttentionConfig], float]


def prefill(rows: int) -> Step:
    """One chunk whose rows read each other."""
    segments = [Segment(0, rows, 0, PREFIX, 0), Segment(0, rows, 0, rows, PREFIX, in_step=True)]
    return Step(Segments.of(segments), np.arange(PREFIX, PREFIX + rows, dtype=np.int64), PREFIX)


def decoding() -> Step:
    """Rows with `OWN_KEYS` keys of their own."""
    starts = PREFIX + OWN_KEYS * np.arange(DECODE_ROWS)
    own = [Segment(row, row + 1, start, start + OWN_KEYS, PREFIX) for row, start in enumerate(starts.tolist())]
    segments = Segments.of([*own, Segment(0, DECODE_ROWS, 0, PREFIX, 0)])
    positions = np.full(DECODE_ROWS, PREFIX + OWN_KEYS - 1, dtype=np.int64)
    return Step(segments, positions, PREFIX + DECODE_ROWS * OWN_KEYS)


def tune_all(shape: AttentionShape, device: torch.device, time: Time) -> Iterator[tuple[int, AttentionConfig]]:
    """What is kept for each kind of step, by how many rows its widest segment stacks."""
    for widest in (DECODE, *WIDEST):
        step = prefill(max(widest // shape.slice_heads, 1)) if widest else decoding()
        yield widest, tune(device, shape.room, widest, lambda config, step=step: time(step, shape, config))  # type: ignore[misc]


def time_on_gpu(step: Step, shape: AttentionShape, config: AttentionConfig) -> float:
    """Milliseconds of a layer in bfloat16, the median."""
    torch.manual_seed(0)
    rows = len(step.positions)
    query, key, value, *caches = (
        torch.randn(*sizes, shape.dim, dtype=torch.bfloat16, device="cuda")
        for sizes in (
            (rows, shape.heads),
            *[(rows, shape.kv_heads)] * 2,
            *[(step.slots // shape.page, shape.page, shape.kv_heads)] * 2,
        )
    )
    inputs = AttentionInputs(query, key, value, *caches)
    tables = launch_tables(step.segments, step.positions, shape, "cuda", config=config)
    run = captured(lambda: prefix_shared_attention(tables, inputs, shape.dim**-0.5)[0])
    return milliseconds(run, REPEATS)[1]


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser("python -m kernels.gpu.tune")
    for name, default in (("--heads", 32), ("--kv-heads", 8), ("--dim", 128)):
        parser.add_argument(name, type=int, default=default)
    given = parser.parse_args(arguments)
    if given.heads % given.kv_heads:
        parser.error(f"--heads {given.heads} is no multiple of --kv-heads {given.kv_heads}")
    if not torch.cuda.is_available():
        sys.stderr.write("kernels.gpu.tune times a GPU and this machine has none\n")
        return 2
    shape = AttentionShape(given.heads, given.kv_heads, given.dim, PAGE)
    for widest, config in tune_all(shape, torch.device("cuda"), time_on_gpu):
        what = f"up to {widest} stacked rows" if widest else "decoding"
        tile = f"{config.small}, {config.large} x {config.keys}; {config.num_warps} warps, {config.num_stages} stages"
        sys.stdout.write(f"{what}: {tile}\n")
        sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
