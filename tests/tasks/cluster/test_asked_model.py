"""What a cluster's worker tells of the model, and what of it is refused."""

from pathlib import Path

import msgspec
import pytest

from engine.errors import UserError
from engine.model.checkpoint import ModelFiles, resolve_model
from tasks.cluster.asked_model import AskedModel, Told, tell_model
from tests.tasks.fakes import write_model


@pytest.fixture
def model(tmp_path: Path) -> AskedModel:
    folder = str(write_model(tmp_path / "fine"))
    return AskedModel(folder, resolve_model(folder))


def test_the_model_comes_back_as_it_lies_there(model: AskedModel) -> None:
    assert model.read(tell_model(model.there), "there") == model.here


def test_a_path_from_home_is_looked_for_as_it_is_here(model: AskedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(Path(model.path).parent))
    assert AskedModel("~/fine", model.here).there == model.path
    assert AskedModel("embedded", model.here).there == "embedded"


def test_another_content_is_refused(model: AskedModel) -> None:
    Path(model.path, "model.safetensors").write_bytes(b"other")
    with pytest.raises(UserError, match=r"^model\.path: another model lies at /.*/fine \(on there\)$"):
        model.read(tell_model(model.there), "there")


def test_none_is_refused_in_the_workers_words(model: AskedModel) -> None:
    with pytest.raises(UserError, match=r"^model\.path: .*/nowhere.* \(on there\)$"):
        model.read(tell_model(f"{model.path}/nowhere"), "there")


def test_one_that_cannot_be_read_is_refused(model: AskedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    def cannot(_: str) -> ModelFiles:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tasks.cluster.asked_model.resolve_model", cannot)
    with pytest.raises(UserError, match=r"^model\.path: .*/fine cannot be read: Permission denied \(on there\)$"):
        model.read(tell_model(model.there), "there")


def test_another_trunkline_is_refused(model: AskedModel) -> None:
    told = msgspec.msgpack.encode(Told("9.9", None))
    with pytest.raises(UserError, match=r"^runner: Trunkline is 9\.9 on there and [\d.]+ here; install one"):
        model.read(told, "there")
    with pytest.raises(UserError, match=r"^runner: another Trunkline than [\d.]+ is installed on there$"):
        model.read(b"\xc1", "there")
