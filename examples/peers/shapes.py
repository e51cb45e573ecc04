"""The workloads that Trunkline and its peers are held to."""

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Shape:
    """`arguments` are the `writer`'s; both sides get `kv_gib` of KV; `peers` are those that can run it."""

    name: str
    arguments: str
    kv_gib: float = 4.0
    peers: tuple[str, ...] = ("vllm",)
    writer: str = "engine.bench.workload"

    @property
    def label(self) -> str:
        """Everything that decides what is measured."""
        return f"{self.arguments}, KV {self.kv_gib:g} GiB"


SHAPES = (
    Shape("long-output", "generate --groups 4 --degree 16 --prefix 2000 --distinct 200 --output 100"),
    Shape("short-output", "generate --groups 8 --degree 16 --prefix 1024 --distinct 64 --output 32"),
    Shape("long-prefix", "generate --groups 4 --degree 16 --prefix 7000 --distinct 200 --output 1", kv_gib=0.5),
    Shape("tree", "tree --instruction 1000 --documents 8 --document 700 --rows 16 --row 60 --output 1"),
    Shape(
        "choice",
        "choice --groups 2 --degree 8 --prefix 1000 --distinct 80 --labels 4 --label-tokens 3",
        peers=("vllm", "lm-eval"),
    ),
    Shape("few-shot", "letters --subjects 57 --rows 20", peers=("lm-eval",), writer="examples.peers.few_shot"),
    Shape("unshared", "generate --groups 64 --degree 1 --prefix 512 --distinct 8 --output 64"),
)


def write_workload(shape: Shape, folder: Path) -> Path:
    """The shape's lines, made if they are not there; a change of the shape is another file."""
    file = folder / f"{shape.name}-{shape.arguments.replace(' --', '-').replace(' ', '')}.jsonl"
    if not file.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        staged = file.with_suffix(".staged")
        with staged.open("w") as sink:
            subprocess.run([sys.executable, "-m", shape.writer, *shape.arguments.split()], stdout=sink, check=True)
        staged.rename(file)
    return file
