"""What this machine's float32 matmul sustains: prints FLOP/s for layers of a model's sizes.

    python engine/bench/matmul_rate.py HIDDEN_SIZE INTERMEDIATE_SIZE

A program of its own, because a second thread that computes beside an engine's makes OpenMP's workers sleep.
"""

import os
import statistics
import subprocess
import sys
import time

import torch

ROWS, LAYERS, ROUNDS = 512, 20, 7


def measure(hidden_size: int, intermediate_size: int) -> float:
    """Median FLOP/s over rounds of `LAYERS` different weights, up and down again, at 512 rows."""
    up = [torch.randn(intermediate_size, hidden_size) for _ in range(LAYERS)]
    down = [torch.randn(hidden_size, intermediate_size) for _ in range(LAYERS)]
    rows, wide = torch.randn(ROWS, hidden_size), torch.empty(ROWS, intermediate_size)
    out = torch.empty(ROWS, hidden_size)
    seconds = []
    for _ in range(ROUNDS + 1):
        started = time.perf_counter()
        for widen, narrow in zip(up, down, strict=True):
            torch.mm(rows, widen.t(), out=wide)
            torch.mm(wide, narrow.t(), out=out)
        seconds.append(time.perf_counter() - started)
    return 4.0 * ROWS * hidden_size * intermediate_size * LAYERS / statistics.median(seconds[1:])


def measure_apart(hidden_size: int, intermediate_size: int, cores: int) -> float:
    """`measure` in a process of its own, on so many cores."""
    command = [sys.executable, "-P", __file__, str(hidden_size), str(intermediate_size)]
    environment = os.environ | {"OMP_NUM_THREADS": str(cores)}
    return float(subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout)


if __name__ == "__main__":
    sys.stdout.write(f"{measure(int(sys.argv[1]), int(sys.argv[2]))}\n")
