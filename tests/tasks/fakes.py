"""Stand-ins that make the steps fast and exact: a model folder without weights, a byte tokenizer, an engine."""

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from transformers.convert_slow_tokenizer import bytes_to_unicode

from engine.config import EngineConfig
from engine.errors import EngineDeadError
from engine.plan import ShardWork
from engine.request import LabelScore, Request, RequestOutput
from tasks.workers import Computed, OnOutput

CONTEXT = 256
BAD_WORD = b"unlucky"
_SPECIAL = ("<|user|>", "<|bot|>", "<|end|>")
_CONFIG = {
    "model_type": "llama",
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "intermediate_size": 128,
    "vocab_size": 300,
    "max_position_embeddings": CONTEXT,
}


def write_model(folder: Path) -> Path:
    """What `resolve_model` and `load_shape` read."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(_CONFIG))
    (folder / "model.safetensors").write_bytes(b"none")
    return folder


class ByteTokenizer:
    """A token a byte, but for three special tokens."""

    all_special_tokens = _SPECIAL
    added_tokens_decoder = {256 + i: AddedToken(token, special=True) for i, token in enumerate(_SPECIAL)}  # noqa: RUF012
    bos_token_id: int | None = None
    eos_token_id: int | None = None
    chat_template: str | None = "as apply_chat_template does"

    def get_vocab(self) -> dict[str, int]:
        return {chr(i): i for i in range(256)} | {token: 256 + i for i, token in enumerate(_SPECIAL)}

    @property
    def backend_tokenizer(self) -> Tokenizer:
        """The same in tokenizers' own form."""
        tokenizer = Tokenizer(models.BPE({character: byte for byte, character in bytes_to_unicode().items()}, []))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.add_special_tokens(list(self.added_tokens_decoder.values()))
        return tokenizer

    def __call__(self, texts: Sequence[str], **_: object) -> dict[str, list[list[int]]]:
        return {"input_ids": [self._encode(text) for text in texts]}

    def _encode(self, text: str) -> list[int]:
        ids: list[int] = []
        while text:
            special = next((i for i, token in enumerate(_SPECIAL) if text.startswith(token)), None)
            if special is not None:
                ids.append(256 + special)
                text = text[len(_SPECIAL[special]) :]
            else:
                ids.extend(text[0].encode())
                text = text[1:]
        return ids

    def decode(self, ids: Sequence[int], **_: object) -> str:
        parts = [_SPECIAL[i - 256].encode() if i >= 256 else bytes([i]) for i in ids]
        return b"".join(parts).decode()

    def apply_chat_template(self, messages: list[dict[str, str]], **_: object) -> str:
        if any(message["role"] not in ("system", "user", "assistant") for message in messages):
            raise ValueError("no such role")
        return "".join(f"<|user|>{message['content']}<|end|>\n" for message in messages) + "<|bot|>\n"


class FakeWorkers:
    """Answers that follow from the request alone. Each scored request adds its id to the `FAKE_ENGINE_LOG` file.

    While `heals` is False, a prompt that holds `BAD_WORD` is an error, and one that holds `killer` kills the engine in
    its step, which is of `step_requests` of a shard's requests, in order; `killed` counts those deaths.
    """

    label = "the fake engine"
    stage: str | None = None
    waiting_for: str | None = None

    def __init__(
        self, *, heals: bool = False, deaths: int = 0, killer: bytes | None = None, step_requests: int = 4
    ) -> None:
        self.heals = heals
        self.deaths = deaths
        self.killer = killer
        self.killed = 0
        self.step_requests = step_requests
        self.finish_reason = "length"  # of texts
        self.works: list[ShardWork] = []

    def each(self) -> "tuple[FakeWorkers, ...]":
        return (self,)

    def start(self) -> None:
        """Nothing is to be loaded."""

    def config(self) -> EngineConfig:
        return EngineConfig()

    def totals(self) -> Computed:
        return Computed(requests=len(self.scored))

    def close(self) -> None:
        """Nothing is left of it."""

    def submit(self, work: ShardWork, on_output: OnOutput | None = None) -> "Future[list[RequestOutput]]":
        future: Future[list[RequestOutput]] = Future()
        self.works.append(work)
        if self.deaths:
            self.deaths -= 1
            future.set_exception(EngineDeadError("dead"))
            return future
        outputs: list[RequestOutput] = []
        for step in batched(work.requests, self.step_requests):
            if self._dies_of(step):
                self.killed += 1
                future.set_exception(EngineDeadError("killed by signal 11"))
                return future
            ended = [self._answer(request) for request in step]
            log_scored([output.request_id for output in ended])
            for output in ended:
                if on_output is not None:
                    on_output(output)
            outputs += ended
        future.set_result(outputs)
        return future

    def _dies_of(self, step: Sequence[Request]) -> bool:
        return self.killer is not None and not self.heals and any(self.killer in _text(one) for one in step)

    @property
    def scored(self) -> list[str]:
        return [request.request_id for work in self.works for request in work.requests]

    def _answer(self, request: Request) -> RequestOutput:
        prompt = request.prompt_token_ids
        seed = hashlib.sha256(prompt.tobytes()).digest()
        if BAD_WORD in _text(request) and not self.heals:
            return RequestOutput(
                request.request_id, "error", len(prompt), error_type="NON_FINITE", error_message="not finite"
            )
        if request.labels is not None:
            scores = tuple(LabelScore(-seed[i % 32] / 16 - len(ids), i == 0) for i, ids in enumerate(request.labels))
            return RequestOutput(request.request_id, "scored", len(prompt), label_scores=scores)
        ids = tuple(seed[: min(request.params.max_tokens, 4)])
        text = seed.hex()[: len(ids)]
        return RequestOutput(request.request_id, self.finish_reason, len(prompt), token_ids=ids, text=text)


def batched(requests: Sequence[Request], size: int) -> Iterator[Sequence[Request]]:
    return (requests[first : first + size] for first in range(0, len(requests), size))


def _text(request: Request) -> bytes:
    prompt = request.prompt_token_ids
    return np.where(prompt < 256, prompt, 32).astype(np.uint8).tobytes()


def log_scored(request_ids: Sequence[str]) -> None:
    name = os.environ.get("FAKE_ENGINE_LOG")
    if name:
        with open(name, "a") as file:
            file.write("".join(f"{request_id}\n" for request_id in request_ids))


def job_content(folder: Path, source: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """A choice job on the fake model; `changes` replace whole top-level keys."""
    return {
        "name": "test",
        "source": source,
        "prompt": {"column": "text"},
        "task": {"type": "choice", "labels": [" yes", " no"]},
        "model": {"path": str(folder / "model")},
        "engine": {"device": "cpu", "kv_cache_memory": "16MiB"},
        "output": str(folder / "out"),
    } | changes
