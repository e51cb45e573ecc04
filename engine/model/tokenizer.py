"""The model's tokenizer, from local files."""

import json
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from engine.errors import UserError
from engine.model.checkpoint import ModelFiles, load_shape, tokenizer_folder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

# The class for which tokenizer.json says everything.
GENERAL = "TokenizersBackend"


# A run's process asks twice, to check the prompt and to encode the rows; its engine's may be the same process.
@lru_cache(maxsize=2)
def load_tokenizer(model: ModelFiles) -> "PreTrainedTokenizerFast":
    """`own_tokenizer`, read once for all of this process's callers, in any thread: none of them changes it.

    Nothing is cut or filled up, whatever its file says: to ask for that later would change it beside who encodes.
    """
    tokenizer = own_tokenizer(model)
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.no_padding()
    return tokenizer


def own_tokenizer(model: ModelFiles) -> "PreTrainedTokenizerFast":
    """Raises UserError where the model has none that runs without remote code, or another model's."""
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
    _refuse_foreign(tokenizer, model)
    return tokenizer


def _refuse_foreign(tokenizer: "PreTrainedTokenizerFast", model: ModelFiles) -> None:
    """Special tokens alone may lie beyond the embeddings, as Gemma 3's for images; a row with one is an error row."""
    known = load_shape(model).vocab_size
    special = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)
    beyond = [token_id for token_id in tokenizer.get_vocab().values() if token_id >= known and token_id not in special]
    if beyond:
        raise UserError(
            f"model.path: {model.name} has a vocabulary of {known:,} tokens, its tokenizer knows {max(beyond) + 1:,}; "
            "take the tokenizer that belongs to the weights"
        )


def _class_of(folder: Path) -> str | None:
    file = folder / "tokenizer_config.json"
    content = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return content.get("tokenizer_class") if "auto_map" not in content else None
