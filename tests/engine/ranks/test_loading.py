"""What is left of the ranks where one of them is lost, or a load fails, before there is an engine."""

import os
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import pytest
import torch.distributed as dist

from engine.config import EngineConfig
from engine.errors import UserError
from engine.forward import rank_group
from engine.forward.rank_group import join_group, leave_group
from engine.loop import build
from engine.loop.build import build_engine
from engine.machine.device import resolve_device
from engine.machine.place import Place
from engine.model.checkpoint import ModelFiles, resolve_model
from engine.process.child import Child
from engine.ranks import other_ranks, rank_server
from engine.ranks.load_ranks import load_ranks
from engine.ranks.messages import LoadPart, encode
from engine.ranks.other_ranks import OtherRanks

CONFIG = EngineConfig(device="cpu", kv_cache_memory=2**20, tensor_parallel=2)
NO_MODEL = ModelFiles("none", Path("/none"), None, "")


class Lost(Exception):
    pass


def lost() -> NoReturn:
    raise Lost


def test_the_first_rank_does_not_wait_for_one_that_is_lost(tmp_path: Path) -> None:
    started = time.monotonic()
    with pytest.raises(Lost):
        join_group(0, tmp_path / "meeting", CONFIG, resolve_device(CONFIG), lost)
    assert time.monotonic() - started < 5


def test_a_rank_that_does_not_come_is_waited_for_shortly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rank_group, "MEETING_SECONDS", 0.1)
    with pytest.raises(RuntimeError, match=r"^engine\.tensor_parallel: not all of 2 ranks came together in 0\.1 s$"):
        join_group(0, tmp_path / "meeting", CONFIG, resolve_device(CONFIG))


class FakeChannel:
    def __init__(self, *frames: bytes) -> None:
        self._frames, self.sent = iter(frames), []  # type: ignore[var-annotated]

    def receive(self) -> bytes | None:
        return next(self._frames, None)

    def send(self, frame: bytes) -> None:
        self.sent.append(frame)


def test_a_rank_whose_device_is_not_there_has_not_begun() -> None:
    nowhere = replace(CONFIG, device="tpu")  # type: ignore[arg-type]
    channel = FakeChannel(encode(LoadPart(NO_MODEL, nowhere, 1, Path("/none"), Place())))
    with pytest.raises(UserError):
        rank_server._serve(channel)  # type: ignore[arg-type]
    assert channel.sent == []


@pytest.fixture
def foreign_group(tmp_path: Path) -> Iterator[None]:
    store = dist.FileStore(str(tmp_path / "foreign"), 1)  # type: ignore[attr-defined]
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("foreign_group")
def test_a_group_of_the_callers_is_left_alone_and_refused() -> None:
    with pytest.raises(UserError, match=r"^engine\.tensor_parallel: this process is already a rank of a torch"):
        load_ranks(NO_MODEL, CONFIG, resolve_device(CONFIG))
    leave_group()
    assert dist.is_initialized()


@pytest.mark.parametrize("before", [None, "3"])
@pytest.mark.parametrize("backend", ["gloo", "nccl"])
def test_who_leaves_a_group_has_no_rank_of_it(
    backend: str, before: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    if before is not None:
        monkeypatch.setenv("LOCAL_RANK", before)
    alone = replace(CONFIG, tensor_parallel=1)
    join_group(0, tmp_path / "meeting", alone, resolve_device(alone))
    assert os.environ["LOCAL_RANK"] == "0"
    # NCCL's is aborted, behind which there is none to leave.
    monkeypatch.setattr(dist, "get_backend", lambda: backend)
    monkeypatch.setattr(dist.distributed_c10d, "_abort_process_group", dist.destroy_process_group)
    leave_group()
    assert (os.environ.get("LOCAL_RANK"), dist.is_initialized()) == (before, False)


def test_a_process_has_one_engine_of_several_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(other_ranks, "SECONDS_TO_LEAVE", 0.01)
    first = OtherRanks(NO_MODEL, CONFIG, (Place(),))
    with pytest.raises(
        UserError, match=r"^engine\.tensor_parallel: this process has an engine of several ranks already"
    ):
        load_ranks(NO_MODEL, CONFIG, resolve_device(CONFIG))
    first.close()
    second = OtherRanks(NO_MODEL, CONFIG, (Place(),))
    first.close()  # again, by whoever had it
    with pytest.raises(UserError):
        OtherRanks(NO_MODEL, CONFIG, (Place(),))
    second.close()


def test_a_folder_that_cannot_be_made_leaves_room_for_another_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(other_ranks, "SECONDS_TO_LEAVE", 0.01)
    with monkeypatch.context() as full:
        full.setattr(other_ranks.tempfile, "mkdtemp", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left")))
        with pytest.raises(OSError, match="No space"):
            OtherRanks(NO_MODEL, CONFIG, (Place(),))
    OtherRanks(NO_MODEL, CONFIG, (Place(),)).close()


def test_ranks_that_were_begun_end_where_another_cannot_begin(monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[Child] = []

    def child(server: str) -> Child:
        if begun:
            raise OSError(11, "Resource temporarily unavailable")
        begun.append(Child(server))
        return begun[0]

    monkeypatch.setattr(other_ranks, "Child", child)
    monkeypatch.setattr(other_ranks, "SERVER", "no_such_module")
    with pytest.raises(OSError, match="Resource"):
        OtherRanks(NO_MODEL, CONFIG, (Place(),) * 3)
    assert begun[0]._process.poll() is not None


class FakeRanks:
    closed = False

    def close(self) -> None:
        self.closed = True


@pytest.mark.parametrize("where", ["engine.loop.build.engine_config", "engine.loop.engine.Scheduler"])
def test_a_load_that_fails_behind_the_ranks_ends_them(
    where: str, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    others, load = FakeRanks(), build.load_ranks

    def with_others(*of: object) -> object:
        runner = load(*of)  # type: ignore[arg-type]
        runner.others = others  # type: ignore[assignment]
        return runner

    def fails(*_: object, **__: object) -> NoReturn:
        raise Lost

    monkeypatch.setattr(build, "load_ranks", with_others)
    monkeypatch.setattr(where, fails)
    with pytest.raises(Lost):
        build_engine(resolve_model(str(tiny_model)), replace(CONFIG, tensor_parallel=1), detokenize=False)
    assert others.closed
