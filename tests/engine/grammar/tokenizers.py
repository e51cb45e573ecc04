"""A small tokenizer of each kind that models come with, trained on the same lines."""

import json
import string
from collections.abc import Callable

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

LINES = [json.dumps({"name": f"Person {i}", "tags": ["a", "b c"], "n": i * 7, "x": None}) for i in range(200)]
LINES += ["the quick brown fox jumps over the lazy dog, größe π é 日本 😀 \n\t\x01", string.printable] * 20
END = "</s>"
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def byte_level() -> Tokenizer:
    """GPT-2's, Llama 3's, Qwen's."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=[END], initial_alphabet=alphabet, show_progress=False)
    made.train_from_iterator(LINES, trainer)
    return made


def byte_fallback() -> Tokenizer:
    """SentencePiece's BPE as Gemma has it."""
    made = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    made.normalizer = normalizers.Replace(" ", "▁")
    trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=["<unk>", END, *BYTES], show_progress=False)
    made.train_from_iterator(LINES, trainer)
    content = json.loads(made.to_str())
    content["added_tokens"] = [token for token in content["added_tokens"] if token["content"] not in BYTES]
    made = Tokenizer.from_str(json.dumps(content))
    made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return made


def prefix_space() -> Tokenizer:
    """SentencePiece's BPE as Llama 2 and Mistral have it: a space before each text, taken off its beginning again."""
    made = byte_fallback()
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    made.decoder = decoders.Sequence(steps)
    return made


def unigram() -> Tokenizer:
    """SentencePiece's other model, as XGLM and Ernie have it."""
    made = Tokenizer(models.Unigram())
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=400, special_tokens=["<unk>", END], unk_token="<unk>", show_progress=False
    )
    made.train_from_iterator(LINES, trainer)
    return made


def word_piece() -> Tokenizer:
    """BERT's."""
    made = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(vocab_size=400, special_tokens=["[UNK]", END], show_progress=False)
    made.train_from_iterator(LINES, trainer)
    return made


def fast(make: Callable[[], Tokenizer]) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=make(), eos_token=END)
