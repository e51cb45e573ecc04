"""The model's tokenizer, from local files."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

from engine.errors import UserError
from engine.model import ModelFiles, tokenizer_folder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

# The class for which tokenizer.json says everything.
GENERAL = "TokenizersBackend"


def load_tokenizer(model: ModelFiles) -> "PreTrainedTokenizerFast":
    """Raises UserError where the model has none that runs without remote code."""
    from transformers import PreTrainedTokenizerFast

    folder = tokenizer_folder(model)
    try:
        if _class_of(folder) == GENERAL:
            tokenizer: object = PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
        else:
            from transformers import AutoTokenizer  # brings torch with it

            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except (OSError, ValueError, ImportError) as problem:
        raise UserError(f"model.path: no tokenizer in {folder} ({str(problem).splitlines()[0]})") from None
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise UserError(f"model.path: {folder} needs tokenizer.json, the fast tokenizer's file")
    return tokenizer


def _class_of(folder: Path) -> str | None:
    file = folder / "tokenizer_config.json"
    content = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return content.get("tokenizer_class") if "auto_map" not in content else None
