"""A model's folder is data: no pickle in it is read and no code of its own runs. A canary would say so."""

import json
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest

from engine.config import EngineConfig
from engine.errors import UserError
from engine.forward.load import find_model, read_weights
from engine.machine.device import resolve_device
from engine.model.adapter_config import AdapterError
from engine.model.adapter_files import read_adapter
from engine.model.checkpoint import load_shape, resolve_model
from engine.model.linear_schemes import linear_scheme
from engine.model.tokenizer import load_tokenizer

pytestmark = pytest.mark.fault(24)


class Touch:
    """Unpickled, it makes a file."""

    def __init__(self, canary: Path) -> None:
        self._canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mknod, (str(self._canary),)


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    return tmp_path / "canary"


@pytest.fixture
def folder(tiny_model: Path, tmp_path: Path, canary: Path) -> Path:
    """A sound model beside which all of a hostile one lies."""
    copy = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    poison = pickle.dumps(Touch(canary))
    for name in ("pytorch_model.bin", "training_args.bin", "model.pt", "tf_model.h5", "optimizer.pth"):
        (copy / name).write_bytes(poison)
    code = f"open({str(canary)!r}, 'w')\nclass Evil: pass\nclass EvilConfig: pass\n"
    for name in ("modeling_evil", "configuration_evil", "tokenization_evil", "custom_generate/generate"):
        (copy / name).parent.mkdir(exist_ok=True)
        (copy / f"{name}.py").write_text(code)
    return copy


def changed(path: Path, **keys: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | keys))


EVIL = {"AutoConfig": "configuration_evil.EvilConfig", "AutoModelForCausalLM": "modeling_evil.Evil"}


def load(folder: Path) -> None:
    files = resolve_model(str(folder))
    load_shape(files)
    load_tokenizer(files)
    device = resolve_device(EngineConfig(device="cpu"))
    read_weights(find_model(files), device, linear_scheme("none", device.backend))


def test_a_canary_sings(canary: Path) -> None:
    pickle.loads(pickle.dumps(Touch(canary)))
    assert canary.exists()


def test_what_lies_beside_safetensors_is_left_alone(folder: Path, canary: Path) -> None:
    """A family that transformers has itself is its own code's, whatever the folder brings."""
    changed(folder / "config.json", auto_map=EVIL)
    changed(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": [None, "tokenization_evil.Evil"]})
    load(folder)
    assert not canary.exists()


def test_a_family_that_needs_code_of_its_own_is_refused_by_name(folder: Path, canary: Path) -> None:
    changed(folder / "config.json", auto_map=EVIL, model_type="evil")
    with pytest.raises(UserError, match=r"^model\.path: model \(evil\) needs Python code of its own \(auto_map\)"):
        load_shape(resolve_model(str(folder)))
    assert not canary.exists()


def test_a_tokenizer_that_needs_code_of_its_own_is_refused(folder: Path, canary: Path) -> None:
    changed(
        folder / "tokenizer_config.json",
        tokenizer_class="Evil",
        auto_map={"AutoTokenizer": [None, "tokenization_evil.Evil"]},
    )
    (folder / "tokenizer.json").unlink()
    with pytest.raises(UserError, match=r"^model\.path: "):
        load_tokenizer(resolve_model(str(folder)))
    assert not canary.exists()


def test_pickled_weights_alone_are_refused_by_name(folder: Path, canary: Path) -> None:
    for file in folder.glob("*.safetensors"):
        file.unlink()
    with pytest.raises(UserError, match=r"holds only \S+\.bin, which is a pickle and is never loaded"):
        load(folder)
    assert not canary.exists()


def test_a_pickle_that_is_called_safetensors_is_one_line(folder: Path, canary: Path) -> None:
    (folder / "model.safetensors").write_bytes((folder / "pytorch_model.bin").read_bytes())
    with pytest.raises(Exception, match=r"(?i)header|safetensors"):
        load(folder)
    assert not canary.exists()


@pytest.mark.parametrize("name", ["pytorch_model.bin", "../elsewhere.safetensors", "/etc/passwd", 3, None])
def test_an_index_names_safetensors_beside_it(folder: Path, canary: Path, name: object) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"lm_head.weight": name}}))
    with pytest.raises(UserError, match=r"index\.json names .+, which is no safetensors file beside it"):
        load(folder)
    assert not canary.exists()


def test_a_pickled_adapter_is_refused_by_name(tmp_path: Path, canary: Path) -> None:
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_model.bin").write_bytes(pickle.dumps(Touch(canary)))
    with pytest.raises(AdapterError, match="is a pickle and is never loaded"):
        read_adapter(tmp_path / "adapter")
    assert not canary.exists()
