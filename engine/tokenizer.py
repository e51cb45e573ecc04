"""The model's tokenizer, from local files."""

from typing import TYPE_CHECKING

from engine.errors import UserError
from engine.model import ModelFiles, tokenizer_folder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def load_tokenizer(model: ModelFiles) -> "PreTrainedTokenizerFast":
    """Raises UserError where the model has none that runs without remote code."""
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    folder = tokenizer_folder(model)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except (OSError, ValueError, ImportError) as problem:
        raise UserError(f"model.path: no tokenizer in {folder} ({str(problem).splitlines()[0]})") from None
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise UserError(f"model.path: {folder} needs tokenizer.json, the fast tokenizer's file")
    return tokenizer
