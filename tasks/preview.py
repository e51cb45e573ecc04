"""A few prompts of a job, finished as the model would get them; no weights are loaded, and nothing is written."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from engine.errors import UserError
from engine.model.tokenizer import load_tokenizer
from tasks.job.job import ScoringJob
from tasks.request.columns import find_columns
from tasks.request.items import NEXT_ITEM
from tasks.request.requests import NewRequest, RequestBuilder
from tasks.request.task_types import task_type_of
from tasks.source.row_error import RowError
from tasks.source.source import read_data
from tasks.source.source_rows import SourceBatch, number_rows
from tasks.storage.open_folder import folder_of
from tasks.storage.run import make_run

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


@dataclass(frozen=True, slots=True)
class Preview:
    """A row's prompt with its chat template and special tokens, and how many tokens it has; or the row's error.

    `labels` are what is scored behind it, `label_word` is what a person calls one.
    """

    custom_id: str
    prompt: str | None = None
    tokens: int | None = None
    labels: tuple[str, ...] = ()
    error: RowError | None = None
    label_word: str = "label"


def preview_rows(job: ScoringJob, rows: int, custom_id: str | None = None) -> list[Preview]:
    """Of the first rows, or of the one with this id. Raises UserError as a run would, and for an id that no row has."""
    columns = find_columns(job)
    run = make_run(job, folder_of(job))
    tokenizer = load_tokenizer(run.model)
    builder = RequestBuilder(run, columns.prompt, tokenizer)
    batches = number_rows(read_data(job.source, columns.schema.names))
    found: list[Preview] = []
    for batch, ids in _chosen(batches, job.source.id, rows, custom_id):
        for name, built in zip(ids, builder.build(batch, ids), strict=True):
            found.append(_preview(name, built, tokenizer))
    if custom_id is not None and not found:
        raise UserError(f"--id: no row has {custom_id!r:.80}")
    return found


def _chosen(
    batches: Iterator[SourceBatch], id_column: str | None, rows: int, custom_id: str | None
) -> Iterator[tuple[SourceBatch, Sequence[str]]]:
    """Parts of the batches, with their ids; what comes after the last one is not read."""
    for batch in batches:
        if custom_id is None:
            part = batch.take(0, rows)
            yield part, part.custom_ids(id_column)
            rows -= part.num_rows
        elif custom_id in (ids := batch.custom_ids(id_column)):
            yield batch.take(ids.index(custom_id), 1), [custom_id]
            return
        if rows == 0:
            return


def _preview(custom_id: str, built: NewRequest | RowError, tokenizer: "PreTrainedTokenizerFast") -> Preview:
    if isinstance(built, RowError):
        return Preview(custom_id, error=built)
    ids = built.asked.prompt_token_ids.tolist()
    text = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    word = task_type_of(built.ask.task).label_word
    labels = tuple(name for name in dict.fromkeys(built.asked.label_texts) if name != NEXT_ITEM)
    return Preview(custom_id, str(text), len(ids), labels, label_word=word)
