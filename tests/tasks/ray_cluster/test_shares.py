"""Which engines a Ray node has, by what Ray says of it."""

import pytest

from engine.config import EngineConfig
from tasks.ray_cluster.shares import Share, shares

CPU, GPU = EngineConfig(device="cpu"), EngineConfig(device="cuda")


@pytest.mark.parametrize(
    ("resources", "config", "cpus_each", "found"),
    [
        pytest.param({"CPU": 8.0, "memory": 1e9}, CPU, 0, [Share(8, 0, 8)], id="a node without GPUs"),
        pytest.param({"CPU": 2.0}, CPU, 1, [Share(1, 0, 1), Share(1, 0, 1)], id="this machine's own"),
        pytest.param({"CPU": 8.0, "GPU": 1.0}, CPU, 0, [Share(8, 0, 8)], id="a GPU that the run does not use"),
        pytest.param({"CPU": 8.0, "GPU": 2.0}, GPU, 0, [Share(0, 1, 4), Share(0, 1, 4)], id="two GPUs"),
        pytest.param({"CPU": 1.0, "GPU": 2.0}, GPU, 0, [Share(0, 1, 1), Share(0, 1, 1)], id="fewer CPUs than GPUs"),
        pytest.param({"GPU": 1.0}, GPU, 0, [Share(0, 1, 1)], id="no CPU for tasks"),
        pytest.param({"CPU": 8.0}, GPU, 0, [], id="no GPU where the run has one"),
        pytest.param({"memory": 1e9}, CPU, 0, [], id="a head that Ray is to leave alone"),
        pytest.param({"CPU": 0.5}, CPU, 0, [], id="less than a CPU"),
    ],
)
def test_shares(resources: dict[str, float], config: EngineConfig, cpus_each: int, found: list[Share]) -> None:
    assert shares(resources, config, cpus_each=cpus_each) == found


def test_an_engine_of_several_ranks_has_as_many_gpus() -> None:
    parts = EngineConfig(device="cuda", tensor_parallel=2)
    assert shares({"CPU": 12.0, "GPU": 5.0}, parts) == [Share(0, 2, 6), Share(0, 2, 6)]
