from pathlib import Path

import pytest
from gguf import GGUFWriter

from engine.errors import UserError
from engine.model.checkpoint import lacks_chat_template, load_shape, resolve_model
from engine.model.gguf_header import read_header

KEYS = {"odd.block_count": 7, "odd.scale": 0.5, "odd.on": True, "general.name": "é", "general.architecture": "odd"}


def write(path: Path, template: str | None = None) -> Path:
    writer = GGUFWriter(path, "odd")
    writer.add_uint32("odd.block_count", 7)
    writer.add_float64("odd.scale", 0.5)
    writer.add_bool("odd.on", True)
    writer.add_name("é")
    writer.add_array("tokenizer.ggml.tokens", ["a", "bc", ""])
    writer.add_array("tokenizer.ggml.scores", [0.5, 1.5])
    writer.add_array("odd.nested", [[1, 2], [3]])
    if template is not None:
        writer.add_chat_template(template)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_values_of_every_kind_and_arrays_passed_over(tmp_path: Path) -> None:
    header = read_header(write(tmp_path / "a.gguf"))
    arrays = dict.fromkeys(("tokenizer.ggml.tokens", "tokenizer.ggml.scores", "odd.nested"))
    assert header == KEYS | arrays


@pytest.mark.parametrize("template", [None, "{{ messages }}"])
def test_a_chat_template_is_found_without_a_conversion(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, template: str | None
) -> None:
    monkeypatch.setenv("TRUNKLINE_CACHE", str(tmp_path / "cache"))
    model = resolve_model(str(write(tmp_path / "a.gguf", template)))
    assert lacks_chat_template(model) is (template is None)
    assert not (tmp_path / "cache" / "models").exists()


def test_every_cut_is_refused(tmp_path: Path) -> None:
    whole = write(tmp_path / "a.gguf", "{{ messages }}").read_bytes()
    header_ends = whole.rindex(b"{{ messages }}") + len(b"{{ messages }}")
    for length in range(header_ends):
        (tmp_path / "cut.gguf").write_bytes(whole[:length])
        with pytest.raises(UserError, match=r"model.path: .*cut.gguf is not a GGUF file \("):
            read_header(tmp_path / "cut.gguf")


@pytest.mark.parametrize("content", [b"", b"GGML", b"GGUF" + b"\xff" * 100, b"GGUF\3\0\0\0" + b"\xff" * 100])
def test_another_file_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "other.gguf").write_bytes(content)
    with pytest.raises(UserError, match="is not a GGUF file"):
        load_shape(resolve_model(str(tmp_path / "other.gguf")))


def test_an_architecture_that_transformers_does_not_read_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a.gguf cannot be converted \(") as said:
        load_shape(resolve_model(str(write(tmp_path / "a.gguf"))))
    assert "\n" not in str(said.value)
