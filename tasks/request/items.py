"""The items that a `score` row compares with its query: several prompts of one row, stored as one request."""

import json
from collections.abc import Sequence

from tasks.request.task_type import RowRequest
from tasks.source.cells import Cell, CellOrError, is_utf8
from tasks.source.row_error import BAD_ITEMS, RowError

# Stands among a request's label texts for a prompt that stands among its labels: the next item's. No label is empty.
NEXT_ITEM = ""


def parse_items(value: CellOrError) -> tuple[str, ...] | RowError:
    """A column's value as items: a list of texts, or its JSON text."""
    if isinstance(value, RowError):
        return value
    items: Cell = value
    if isinstance(value, str):
        try:
            items = json.loads(value)
        except (ValueError, RecursionError):
            return RowError(BAD_ITEMS, "the items are neither a list nor a JSON list")
    if not isinstance(items, list) or not items:
        return RowError(BAD_ITEMS, "there are no items" if items in (None, []) else "the items are not a list")
    texts = [item for item in items if isinstance(item, str) and item.strip()]
    if len(texts) < len(items):
        return RowError(BAD_ITEMS, "an item is NULL, empty or no text")
    if not all(is_utf8(text) and "\x00" not in text for text in texts):
        return RowError(BAD_ITEMS, "an item is not valid UTF-8")
    return tuple(texts)


def join_items(items: Sequence[RowRequest | RowError]) -> RowRequest | RowError:
    """The requests of a row's items as one; the first error says which item it is of."""
    good: list[RowRequest] = []
    for place, item in enumerate(items):
        if isinstance(item, RowError):
            return RowError(item.type, f"item {place}: {item.message}")
        good.append(item)
    labels, texts = list(good[0].labels), list(good[0].label_texts)
    for item in good[1:]:
        labels += [item.prompt_token_ids, *item.labels]
        texts += [NEXT_ITEM, *item.label_texts]
    return RowRequest(good[0].prompt_token_ids, labels=tuple(labels), label_texts=tuple(texts))


def split_items(asked: RowRequest) -> list[RowRequest]:
    """The requests that `join_items` was given."""
    return [
        RowRequest(
            asked.prompt_token_ids if first == 0 else asked.labels[first - 1],
            labels=asked.labels[first:last],
            label_texts=asked.label_texts[first:last],
            adapter=asked.adapter,
        )
        for first, last in _bounds(asked.label_texts)
    ]


def split_names(label_texts: Sequence[str]) -> list[Sequence[str]]:
    """The labels of each item."""
    return [label_texts[first:last] for first, last in _bounds(label_texts)]


def _bounds(label_texts: Sequence[str]) -> list[tuple[int, int]]:
    ends = [place for place, text in enumerate(label_texts) if text == NEXT_ITEM]
    return list(zip([0, *(end + 1 for end in ends)], [*ends, len(label_texts)], strict=True))
