"""A row that cannot be scored: it ends in the results' `errors`, and the others go on."""

from dataclasses import dataclass

EMPTY_PROMPT = "EMPTY_PROMPT"
"""The prompt is NULL, has no text or white space alone, or has too few tokens for the task.

Cure: fill the cell, or leave such rows out of the source.
"""
CONTEXT_OVERFLOW = "CONTEXT_OVERFLOW"
"""The prompt with its answer is longer than the model takes, or than the KV cache holds.

Cure: shorten the prompt or `sampling.max_tokens`, let `prompt.truncate_prompt_tokens` cut it, or raise
`engine.kv_cache_memory` where the message says so.
"""
BAD_ENCODING = "BAD_ENCODING"
"""The text is not valid UTF-8, or holds a NUL character.

Cure: mend the cell, or say what a CSV or JSONL file is written in: `source.encoding`.
"""
BAD_MESSAGES = "BAD_MESSAGES"
"""The chat, its tools or the request's body cannot be read, or the model's chat template refuses them.

Cure: write them as OpenAI's API has them; the message says which part is wrong.
"""
BAD_LABELS = "BAD_LABELS"
"""The labels cannot be read, are there twice, have a variant in common, or melt into the prompt's last token.

Cure: give a list of different texts; move a space from the prompt's end to the label's beginning.
"""
BAD_ITEMS = "BAD_ITEMS"
"""The items cannot be read, or cannot stand beside this prompt.

Cure: give a list of texts, or its JSON, beside a prompt that is one text.
"""
BAD_CONTINUATION = "BAD_CONTINUATION"
"""The text to score is NULL, empty, not valid UTF-8, or melts into the context's last token.

Cure: fill the cell; move a space from the context's end to its beginning.
"""
BAD_TASK = "BAD_TASK"
"""What the row asks (`task.column`) is no task, or has a key that a row may not have.

Cure: write a type's name or a `task:` mapping of the keys that the message allows.
"""
BAD_SAMPLING = "BAD_SAMPLING"
"""The row's own parameters (`sampling.column`) cannot be read, or have no effect on its task.

Cure: write a `sampling:` mapping, or NULL where the job's own are meant.
"""
BAD_VALUE = "BAD_VALUE"
"""The cell has no text, such as a date after the year 32767, or a map with a key twice.

Cure: mend the cell, or cast the column to text in the source.
"""
TEMPLATE_ERROR = "TEMPLATE_ERROR"
"""The template fails on this row: a name or field that is not there, a NULL that is printed, or too much work.

Cure: ask first, as `{% if summary %}` does for a NULL and `{% if order.note is defined %}` for a field; `trunkline
preview` shows prompts as they come out.
"""
UNKNOWN_TOKEN = "UNKNOWN_TOKEN"
"""The prompt has tokens that the model's weights do not know.

Cure: use the tokenizer that belongs to the model.
"""
ENGINE_CRASH = "ENGINE_CRASH"
"""The engine died twice while it computed this row alone.

Cure: look at the row, then try again with `--retry-failed`; if it comes again, it is a fault to report.
"""

_MESSAGE_LENGTH = 200


@dataclass(frozen=True, slots=True)
class RowError:
    type: str
    message: str


def described(error_type: str, what: str, problem: Exception) -> RowError:
    said = " ".join(str(problem).split())[:_MESSAGE_LENGTH].encode("utf-8", "replace").decode()
    return RowError(error_type, f"{what}: {said}" if said else what)
