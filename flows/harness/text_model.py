"""Texts as the harness tokenises them: what its models have in common that load a tokenizer themselves."""

import logging
from abc import ABC
from collections.abc import Iterable
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import jinja2
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import has_bos_prefix

from engine.errors import UserError
from engine.model.checkpoint import ModelFiles
from engine.model.tokenizer import own_tokenizer
from tasks.request.budgeted_jinja import chat_budget

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from flows.harness.model_args import ModelArgs

log = logging.getLogger("lm_eval.trunkline")

# A task asks for the continuations of a context one after the other.
_CACHED_TEXTS = 64


class TextModel(TemplateLM, ABC):
    """Encodes as the harness's model `hf` does, to the token."""

    def __init__(self, model: ModelFiles, args: "ModelArgs") -> None:
        """Raises UserError where the model has no tokenizer, or no token to begin an empty context with."""
        super().__init__()
        self.tokenizer: PreTrainedTokenizerFast = own_tokenizer(model)
        if args.add_bos_token is not None:
            self.tokenizer.add_bos_token = args.add_bos_token  # type: ignore[misc]  # it can be set, says its code
        self._add_bos_token = args.add_bos_token
        self._template_args = args.template_args
        # Other weights or another template under the same path have another name.
        self._name = f"{model.name}-{model.fingerprint}"
        tokens = (args.prefix_token_id, self.tokenizer.bos_token_id, self.tokenizer.eos_token_id)
        prefix = next((token for token in tokens if token is not None), None)
        if prefix is None:
            raise UserError("prefix_token_id: the tokenizer has neither BOS nor EOS; say which token begins a text")
        self._prefix_token_id = prefix
        self._encode = lru_cache(_CACHED_TEXTS)(self._encode_text)

    @property
    def eot_token_id(self) -> int | None:
        return self.tokenizer.eos_token_id

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text that nothing precedes."""
        return self._prefix_token_id

    @property
    def tokenizer_name(self) -> str:
        """What the harness's cache of prompts goes by."""
        return self._name

    @property
    def end_text(self) -> str | None:
        """The model's own end."""
        end = self.eot_token_id
        return None if end is None else str(self.tokenizer.decode([end], skip_special_tokens=False))

    def tok_encode(
        self,
        string: str,
        add_special_tokens: bool | None = None,
        left_truncate_len: int | None = None,
        **kwargs: Any,
    ) -> list[int]:
        """`add_special_tokens` None: as the tokenizer has it, or `add_bos_token` says, but no second BOS."""
        del kwargs
        ids = list(self._encode(string, add_special_tokens))
        return ids[-left_truncate_len:] if left_truncate_len else ids

    def tok_decode(self, tokens: Iterable[int], skip_special_tokens: bool = True) -> str:
        return str(self.tokenizer.decode(list(tokens), skip_special_tokens=skip_special_tokens))

    def prompt_ids(self, context: str) -> list[int]:
        """What a text is generated behind."""
        begins = has_bos_prefix(context, self.tokenizer.bos_token)
        return self.tok_encode(context, False if begins else self._add_bos_token) or [self.prefix_token_id]

    def pair_ids(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """A context's tokens and its continuation's, split as `TemplateLM.loglikelihood` splits them.

        A context of white space alone, all of which moves to the continuation, is as an empty one.
        """
        if context.rstrip():
            ids: tuple[list[int], list[int]] = self._encode_pair(context, continuation)
            return ids
        whole = self.tok_encode(context + continuation, add_special_tokens=False)
        return (whole[:1], whole[1:]) if whole[:1] == [self.prefix_token_id] else ([self.prefix_token_id], whole)

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The conversation as a prompt. A template that takes no system message gets none, and that is logged.

        Raises UserError where the model has no template.
        """
        if self.tokenizer.chat_template is None:
            raise UserError("--apply_chat_template: this model has no chat template; leave it out")
        try:
            return self._templated(chat_history, add_generation_prompt)
        except jinja2.exceptions.TemplateError:
            log.warning("the chat template refuses the conversation; trying it without the system message")
            others = [message for message in chat_history if message["role"] != "system"]
            return self._templated(others, add_generation_prompt)

    def _templated(self, messages: list[dict[str, str]], add_generation_prompt: bool) -> str:
        with chat_budget():
            return str(
                self.tokenizer.apply_chat_template(
                    messages,
                    tokenize=False,
                    add_generation_prompt=add_generation_prompt,
                    continue_final_message=not add_generation_prompt,
                    **self._template_args,
                )
            )

    def _encode_text(self, text: str, add_special_tokens: bool | None) -> tuple[int, ...]:
        special = self._add_bos_token if add_special_tokens is None else add_special_tokens
        if add_special_tokens is None and has_bos_prefix(text, self.tokenizer.decode([self.prefix_token_id])):
            special = False
        chosen = {} if special is None else {"add_special_tokens": special}
        return tuple(self.tokenizer.encode(text, **chosen))
