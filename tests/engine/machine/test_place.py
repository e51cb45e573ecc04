"""Where engines compute: cores in equal parts, a GPU each."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from engine.config import EngineConfig
from engine.errors import UserError
from engine.machine.device import Device
from engine.machine.device_turn import lock_names
from engine.machine.place import Place, places, rank_places, visible_gpus

CPU = EngineConfig(device="cpu")


@pytest.fixture(autouse=True)
def eight_cores(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("engine.machine.place.TOPOLOGY", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8, 16)))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.machine.device.cuda_devices", lambda: 4)
    monkeypatch.setattr("engine.machine.place.cuda_devices", lambda: 4)


def test_one_engine_has_the_machine() -> None:
    assert places(CPU, 0) == places(CPU, 1) == (Place(),)


def test_cores_are_dealt_side_by_side() -> None:
    assert places(CPU, 3) == (Place((8, 9), 2), Place((10, 11), 2), Place((12, 13), 2))


@pytest.mark.parametrize("siblings", ["{}-{}\n", "{},{}\n"])
def test_a_cores_threads_are_one_engines(tmp_path: Path, siblings: str) -> None:
    for core in range(8, 16):  # 8 and 12 are threads of one core, and so on
        folder = tmp_path / f"cpu{core}" / "topology"
        folder.mkdir(parents=True)
        first = 8 + core % 4
        (folder / "thread_siblings_list").write_text(siblings.format(first, first + 4))
        (folder / "physical_package_id").write_text("0\n")
    assert places(CPU, 2) == (Place((8, 12, 9, 13), 4), Place((10, 14, 11, 15), 4))


def test_a_chips_cores_are_side_by_side(tmp_path: Path) -> None:
    for core in range(8, 16):
        folder = tmp_path / f"cpu{core}" / "topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text(f"{core}\n")
        (folder / "physical_package_id").write_text(f"{core % 2}\n")
    assert [place.cores for place in places(CPU, 2)] == [(8, 10, 12, 14), (9, 11, 13, 15)]


def test_threads_that_were_asked_for_are_dealt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    assert places(CPU, 2) == (Place((8, 9, 10, 11), 2), Place((12, 13, 14, 15), 2))


def test_more_engines_than_cores_are_refused() -> None:
    with pytest.raises(UserError, match=r"^engine\.workers: 9 are more than the 8 cores that there are$"):
        places(CPU, 9)


@pytest.mark.usefixtures("gpus")
@pytest.mark.parametrize(
    ("device", "workers", "expected"),
    [("auto", 0, ["0", "1", "2", "3"]), ("cuda", 2, ["0", "1"]), ("auto", 1, ["0"]), ("cuda:2", 0, [None])],
)
def test_each_gpu_is_an_engines(device: str, workers: int, expected: list[str | None]) -> None:
    assert [place.gpu for place in places(EngineConfig(device=device), workers)] == expected


@pytest.mark.usefixtures("gpus")
@pytest.mark.parametrize(("device", "there"), [("auto", 4), ("cuda:1", 1)])
def test_more_engines_than_gpus_are_refused(device: str, there: int) -> None:
    with pytest.raises(UserError, match=f"^engine.workers: 5 are more than the {there} GPUs that engine.device names$"):
        places(EngineConfig(device=device), 5)


def test_gpus_have_the_names_that_cuda_was_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3, GPU-8932f937, 5")
    assert visible_gpus(2) == ["3", "GPU-8932f937"]


@pytest.mark.parametrize(("hip", "names"), [("6.4", ["5", "7"]), (None, ["3", "4"])])
def test_rocm_takes_its_own_names_before_cudas(
    monkeypatch: pytest.MonkeyPatch, hip: str | None, names: list[str]
) -> None:
    """An engine's GPU is then named in both; on CUDA the other is nobody's."""
    monkeypatch.setattr("torch.version.hip", hip)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,4")
    monkeypatch.setenv("HIP_VISIBLE_DEVICES", "5,7")
    assert visible_gpus(2) == names
    assert lock_names(Device("cuda:1", "float16", "cuda:1")) == (f"cuda-{names[1]}",)
    Place(gpu=names[1]).take()
    assert visible_gpus(2) == [names[1]]
    assert os.environ["HIP_VISIBLE_DEVICES"] == names[1]


def test_a_processors_part_is_what_it_is_planned_for() -> None:
    whole = Device("cpu", "float32", "cpu (8 cores)", 8)
    assert whole.shared_by(3) == Device("cpu", "float32", "cpu (2 cores)", 2)
    assert whole.shared_by(0) is whole
    gpu = Device("cuda:0", "bfloat16", "cuda:0")
    assert gpu.shared_by(8) is gpu


def test_turns_are_taken_on_its_own_cores_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {10, 11})
    assert lock_names(Device("cpu", "float32", "cpu (2 cores)", 2)) == ("core-10", "core-11")


TAKES = """
import os, sys, threading
from engine.machine.place import Place
core = min(os.sched_getaffinity(0))
Place((core,), 1, "7").take()
there = []
thread = threading.Thread(target=lambda: there.append(os.sched_getaffinity(0)))
thread.start()
thread.join()
print(there == [{core}], os.environ["OMP_NUM_THREADS"], os.environ["CUDA_VISIBLE_DEVICES"])
"""


def test_threads_started_there_are_there() -> None:
    done = subprocess.run([sys.executable, "-c", TAKES], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "1", "7"]


@pytest.mark.usefixtures("gpus")
def test_an_engine_of_ranks_has_as_many_gpus() -> None:
    two = EngineConfig(device="cuda", tensor_parallel=2)
    assert places(two, 0) == places(two, 2) == (Place(gpu="0,1"), Place(gpu="2,3"))
    assert places(two, 1) == (Place(gpu="0,1"),)
    assert places(EngineConfig(device="cuda", tensor_parallel=4), 0) == (Place(),)
    with pytest.raises(UserError, match=r"3 are more than the 4 GPUs .* of which each takes 2 \(engine\.tensor_paral"):
        places(two, 3)
    assert lock_names(Device("cuda:0", "bfloat16", ""), 2) == ("cuda-0", "cuda-1")


def test_ranks_have_parts_of_their_workers_cores() -> None:
    assert places(EngineConfig(device="cpu", tensor_parallel=2), 2) == (
        Place((8, 9, 10, 11), 4),
        Place((12, 13, 14, 15), 4),
    )
    assert rank_places(2, 4) == (Place((8, 9, 10, 11), 4), Place((12, 13, 14, 15), 4))
