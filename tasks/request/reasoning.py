"""Where a row's text has reasoning: as the job says, or as the model's chat template and tokens do."""

from typing import TYPE_CHECKING

from tasks.job.reasoning import Reasoning
from tasks.request.ask import Ask
from tasks.request.prompt_text import PromptText, RenderedPrompt
from tasks.request.special_tokens import SpecialTokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

# Of Qwen, DeepSeek and others; of Mistral.
_KNOWN = (("<think>", "</think>"), ("[THINK]", "[/THINK]"))
_KEPT_ASKS = 4096


class ReasoningFinder:
    """`template` is the chat template's text, None for the model's own."""

    def __init__(
        self, tokenizer: "PreTrainedTokenizerFast", special_tokens: SpecialTokens, template: str | None
    ) -> None:
        self._special = special_tokens
        self._own = _marks_of(tokenizer, special_tokens, template)
        self._found: dict[tuple[str, bool], Ask] = {}

    def resolved(self, ask: Ask, prompt: RenderedPrompt) -> Ask:
        """The ask with the marks between which its text reasons, where it does."""
        said = ask.task.reasoning
        if ask.task.type != "generate" or not said.split or not isinstance(prompt, PromptText):
            return ask
        if ask.sampling.structured_outputs is not None:  # the grammar leaves no room for it
            return ask
        # A text that no template wrote does not ask for an answer, so it is for the job to say what one is.
        is_chat = not prompt.add_special_tokens
        start, end = (said.start, said.end) if said.start is not None or not is_chat else self._own
        if start is None or end is None:
            return ask
        opened = self._ends_inside(prompt.text, start, end) if said.opened is None else said.opened
        if len(self._found) > _KEPT_ASKS:
            self._found.clear()
        key = (ask.text, opened)
        if key not in self._found:
            known = Reasoning(start=start, end=end, opened=opened)
            self._found[key] = Ask(ask.task.model_copy(update={"reasoning": known}), ask.sampling)
        return self._found[key]

    def _ends_inside(self, text: str, start: str, end: str) -> bool:
        """Whether the last turn has begun to reason, and not stopped; what others say in theirs is no matter."""
        turn = text[max(self._special.last_parsed(text), 0) :]
        return turn.rfind(start) > turn.rfind(end)


def _marks_of(
    tokenizer: "PreTrainedTokenizerFast", special_tokens: SpecialTokens, template: str | None
) -> tuple[str, str] | tuple[None, None]:
    """Those that the template or the tokenizer knows and that a text shows, which special tokens are not."""
    own = tokenizer.chat_template
    text = template or ("".join(own.values()) if isinstance(own, dict) else own or "")
    added = {token.content for token in tokenizer.added_tokens_decoder.values()}
    for start, end in _KNOWN:
        if (end in text or {start, end} <= added) and not {start, end} & set(special_tokens.texts):
            return start, end
    return None, None
