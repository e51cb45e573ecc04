"""`classify`: how probable each of a row's labels is, whichever way the model would write it."""

from collections.abc import Sequence
from typing import Any

from engine.request import RequestOutput, TokenIds
from tasks.job.task import Task
from tasks.job.variants import Variants, all_variants
from tasks.request.ask import Ask
from tasks.request.continuations import ContinuationTask, RowLabels, compare_scores, logprobs_of
from tasks.request.label_masses import LabelMasses
from tasks.request.labels import LabelIds, parse_labels
from tasks.request.task_type import Moved, Shown
from tasks.source.row_error import BAD_LABELS, RowError
from tasks.source.source_rows import SourceBatch


class Classify(ContinuationTask):
    """Scores all variants of all labels; a label's probability is the sum of its variants'."""

    name = "classify"
    shown = Shown("classified_counts", ("label", "rows"))
    drops_labels = True

    def labels(self, task: Task, batch: SourceBatch) -> list[RowLabels | RowError]:
        if task.labels_column is None:
            return [_variants(task.labels or (), task.variants)] * batch.num_rows
        return [
            labels if isinstance(labels, RowError) else _variants(labels, task.variants)
            for labels in (parse_labels(value, task) for value in batch.values(task.labels_column))
        ]

    def settle(self, labels: RowLabels, ids: LabelIds) -> tuple[LabelIds, tuple[str, ...]] | RowError:
        """The variants that are tokens of their own, of which none begins with another of its label."""
        kept: list[tuple[TokenIds, str]] = []
        owner: dict[bytes, str] = {}
        for token_ids, name in sorted(zip(ids, labels.names, strict=True), key=lambda pair: len(pair[0])):
            other = owner.setdefault(token_ids.tobytes(), name)
            if len(token_ids) and other != name:
                return RowError(BAD_LABELS, f"labels {other!r:.60} and {name!r:.60} have a variant of the same tokens")
            begun = any(own == name and _begins(token_ids, with_ids) for with_ids, own in kept)
            if len(token_ids) and not begun:
                kept.append((token_ids, name))
        names = dict.fromkeys(labels.names)
        lost = next((name for name in names if all(own != name for _, own in kept)), None)
        if lost is not None:
            said = f"every variant of label {lost!r:.60} melts into the prompt's last token; end the prompt elsewhere"
            return RowError(BAD_LABELS, said)
        in_order = sorted(kept, key=lambda pair: list(names).index(pair[1]))
        return tuple(token_ids for token_ids, _ in in_order), tuple(name for _, name in in_order)

    def result(self, ask: Ask, label_texts: Sequence[str], outputs: Sequence[RequestOutput]) -> dict[str, Any]:
        """The likeliest label, the first of equals; `label_probs` are normalised over the labels."""
        del ask
        (output,) = outputs
        labels = LabelMasses.of(label_texts, logprobs_of(output))
        return {
            "label": labels.names[labels.best],
            "cumulative_logprob": float(labels.logprobs[labels.best]),
            "label_probs": labels.by_name(labels.shares),
            "label_logprobs": labels.by_name(labels.logprobs),
            "min_margin": labels.margin,
            "missing_mass": labels.missing,
        }

    def compare(self, pairs: Sequence[tuple[RequestOutput, RequestOutput]]) -> Moved:
        """Variant by variant: what is a label's is not in an output."""
        return compare_scores(pairs, "same likeliest variant")


def _variants(labels: Sequence[str], variants: Variants) -> RowLabels | RowError:
    try:
        found = all_variants(labels, variants)
    except ValueError as problem:
        return RowError(BAD_LABELS, str(problem))
    texts = tuple(text for own in found.values() for text in own)
    return RowLabels(texts, tuple(label for label, own in found.items() for _ in own))


def _begins(token_ids: TokenIds, with_ids: TokenIds) -> bool:
    return len(with_ids) <= len(token_ids) and bool((token_ids[: len(with_ids)] == with_ids).all())
