"""Times prefix-shared attention on a GPU against torch, flash-attention and FlashInfer's cascade, as CSV.

    python -m kernels.gpu.bench > attention.csv

runs the kernels' tests first and times nothing if one fails. Anywhere but on a GPU it says so and ends with code 2.
"""

import csv
import importlib.metadata
import importlib.util
import itertools
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.attention_inputs import AttentionInputs
from kernels.known_gpus import gpu_at_hand
from kernels.segments import Ints, Segment, Segments

HEADS, KV_HEADS, DIM, PAGE = 32, 8, 128, 16
PREFIXES = (512, 2048, 8192, 32768)
DEGREES = (1, 4, 16, 64, 256, 512)
SUFFIXES = (16, 128, 512, 2048)
REPEATS = 50
# Between two methods in bfloat16, whose outputs are means of standard normal values.
TOLERANCE = 3e-2
COLUMNS = ("device", "torch", "triton", "method", "prefix", "degree", "suffix", "p20_us", "p50_us", "p80_us",
           "bandwidth_fraction", "flops_fraction", "max_error")  # fmt: skip


@dataclass(frozen=True, slots=True, eq=False)
class Decode:
    """One decoding step: `degree` rows behind one prefix, each with `suffix` keys of its own."""

    prefix: int
    degree: int
    suffix: int
    query: Tensor
    key_cache: Tensor
    value_cache: Tensor
    segments: Segments

    @property
    def scale(self) -> float:
        return float(DIM**-0.5)

    @property
    def positions(self) -> Ints:
        return np.full(self.degree, self.prefix + self.suffix - 1, dtype=np.int64)

    @property
    def kv_bytes(self) -> int:
        """At the least: every key and value once."""
        return (self.prefix + self.degree * self.suffix) * 2 * KV_HEADS * DIM * 2

    @property
    def flops(self) -> int:
        return 4 * self.degree * HEADS * DIM * (self.prefix + self.suffix)

    def contexts(self) -> tuple[Tensor, Tensor]:
        """Keys and values as attention without sharing has them: (degree, prefix + suffix, kv_heads, dim), copied."""
        flat = self.key_cache.flatten(0, 1), self.value_cache.flatten(0, 1)
        own = [store[self.prefix :].view(self.degree, self.suffix, KV_HEADS, DIM) for store in flat]
        shared = [store[: self.prefix].expand(self.degree, -1, -1, -1) for store in flat]
        return torch.cat((shared[0], own[0]), 1), torch.cat((shared[1], own[1]), 1)


def decode(prefix: int, degree: int, suffix: int, device: str) -> Decode:
    torch.manual_seed(0)
    slots = prefix + degree * suffix
    made = [torch.randn(slots // PAGE, PAGE, KV_HEADS, DIM, dtype=torch.bfloat16, device=device) for _ in range(2)]
    rows = np.arange(degree, dtype=np.int64)
    own = prefix + rows * suffix
    spans = zip(rows.tolist(), own.tolist(), strict=True)
    segments = [Segment(row, row + 1, start, start + suffix, prefix) for row, start in spans]
    segments.append(Segment(0, degree, 0, prefix, 0))
    query = torch.randn(degree, HEADS, DIM, dtype=torch.bfloat16, device=device)
    return Decode(prefix, degree, suffix, query, made[0], made[1], Segments.of(segments))


Run = Callable[[], Tensor]


@dataclass(frozen=True, slots=True, eq=False)
class Captured:
    """A CUDA graph, what it writes, and `run`, which holds the tables and the tensors that it reads."""

    graph: torch.cuda.CUDAGraph
    out: Tensor
    run: Run

    def __call__(self) -> Tensor:
        self.graph.replay()
        return self.out


def captured(run: Run) -> Captured:
    """Every method alike: the host's launches are not what is timed."""
    run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = run()
    return Captured(graph, out, run)


def ours(step: Decode) -> Run:
    from kernels.gpu.attention.attention_shape import AttentionShape
    from kernels.gpu.attention.launch_tables import launch_tables
    from kernels.gpu.attention.prefix_attention import prefix_shared_attention

    shape = AttentionShape(HEADS, KV_HEADS, DIM, PAGE)
    empty = torch.empty(step.degree, KV_HEADS, DIM, dtype=step.query.dtype, device=step.query.device)
    inputs = AttentionInputs(step.query, empty, empty, step.key_cache, step.value_cache)

    tables = launch_tables(step.segments, step.positions, shape, step.query.device)
    return lambda: prefix_shared_attention(tables, inputs, step.scale)[0]


def torch_attention(step: Decode) -> Run:
    keys, values = (store.transpose(1, 2) for store in step.contexts())
    query = step.query[:, :, None]
    return lambda: F.scaled_dot_product_attention(query, keys, values, enable_gqa=True)[:, :, 0]


def flash_attention(step: Decode) -> Run:
    from flash_attn import flash_attn_func

    keys, values = step.contexts()

    def attend() -> Tensor:
        out: Tensor = flash_attn_func(step.query[:, None], keys, values)[:, 0]
        return out

    return attend


def flashinfer_cascade(step: Decode) -> Run:
    import flashinfer

    device = step.query.device
    workspace = torch.empty(256 * 2**20, dtype=torch.uint8, device=device)
    wrapper = flashinfer.MultiLevelCascadeAttentionWrapper(2, workspace, "NHD")

    def ints(values: Sequence[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.int32, device=device)

    prefix_pages, own_pages = step.prefix // PAGE, step.suffix // PAGE
    rows = ints(range(step.degree + 1))
    pages = ints(range(prefix_pages + step.degree * own_pages))
    wrapper.plan(
        [ints([0, step.degree]), rows],
        [ints([0, prefix_pages]), rows * own_pages],
        [pages[:prefix_pages], pages[prefix_pages:]],
        [ints([PAGE]), ints([PAGE] * step.degree)],
        HEADS,
        KV_HEADS,
        DIM,
        PAGE,
        q_data_type=step.query.dtype,
    )
    return lambda: wrapper.run(step.query, (step.key_cache, step.value_cache))


METHODS: dict[str, tuple[str, Callable[[Decode], Run]]] = {
    "trunkline": ("triton", ours),
    "torch": ("torch", torch_attention),
    "flash_attn": ("flash_attn", flash_attention),
    "flashinfer_cascade": ("flashinfer", flashinfer_cascade),
}


def milliseconds(run: Run, repeats: int = REPEATS) -> tuple[float, float, float]:
    """20th, 50th and 80th percentile, with the L2 cache emptied before each."""
    flush = torch.empty(2**28, dtype=torch.uint8, device="cuda")
    for _ in range(3):
        run()
    events: list[tuple[Any, Any]] = [(torch.cuda.Event(True), torch.cuda.Event(True)) for _ in range(repeats)]  # type: ignore[no-untyped-call]
    for start, end in events:
        flush.zero_()
        start.record()
        run()
        end.record()
    torch.cuda.synchronize()
    low, middle, high = np.percentile([start.elapsed_time(end) for start, end in events], (20, 50, 80)).tolist()
    return low, middle, high


def held_together(out: Tensor, wanted: Tensor, what: str) -> float:
    """Their largest difference; ends the benchmark where it is too large, or not a number."""
    error = float((out - wanted).abs().max())
    if not error < TOLERANCE:
        raise SystemExit(f"{what}: differs by {error:.3g} from the first method, so nothing more is timed")
    return error


def results(device: str) -> Iterator[dict[str, object]]:
    name = torch.cuda.get_device_name(device)
    peak = gpu_at_hand(name)  # one that is not known has no fractions
    found = {method: make for method, (module, make) in METHODS.items() if importlib.util.find_spec(module)}
    for prefix, degree, suffix in itertools.product(PREFIXES, DEGREES, SUFFIXES):
        step = decode(prefix, degree, suffix, device)
        wanted: Tensor | None = None
        for method, make in found.items():
            copied = 0 if method in ("trunkline", "flashinfer_cascade") else degree * (prefix + suffix) * 2 * 2
            if copied * KV_HEADS * DIM > torch.cuda.mem_get_info(device)[0] // 2:
                continue  # contexts side by side, not shared, do not fit
            run = captured(make(step))
            out = run().float()
            wanted = out if wanted is None else wanted
            error = held_together(out, wanted, f"{method} at prefix {prefix}, degree {degree}, suffix {suffix}")
            low, middle, high = (1e3 * time for time in milliseconds(run))
            yield {
                "device": name,
                "torch": torch.__version__,
                "triton": importlib.metadata.version("triton"),
                "method": method,
                "prefix": prefix,
                "degree": degree,
                "suffix": suffix,
                "p20_us": round(low, 2),
                "p50_us": round(middle, 2),
                "p80_us": round(high, 2),
                "bandwidth_fraction": round(step.kv_bytes / middle * 1e6 / peak.memory_bytes, 4) if peak else "",
                "flops_fraction": round(step.flops / middle * 1e6 / peak.bfloat16, 4) if peak else "",
                "max_error": error,
            }


def main(_: Sequence[str]) -> int:
    if not torch.cuda.is_available():
        sys.stderr.write(
            "kernels.bench times a GPU and this machine has none; run it where torch.cuda.is_available()\n"
        )
        return 2
    root = Path(__file__).parents[2]
    tests = subprocess.run([sys.executable, "-m", "pytest", "-q", "tests/kernels"], cwd=root, stdout=sys.stderr)
    if tests.returncode:
        sys.stderr.write("the kernels' tests fail, so nothing is timed\n")
        return 1
    rows = csv.DictWriter(sys.stdout, COLUMNS)
    rows.writeheader()
    for row in results("cuda"):
        rows.writerow(row)
        sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
