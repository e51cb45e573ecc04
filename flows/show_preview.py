"""`trunkline preview`: prompts for a person, or as JSON."""

import json

from rich.console import Console
from rich.rule import Rule

from flows.terminal_text import as_text
from tasks.preview import Preview


def show_previews(previews: list[Preview], console: Console) -> None:
    """Each under its row's id; nothing in a prompt is obeyed, and no line of it is folded."""
    for preview in previews:
        tokens = "1 token" if preview.tokens == 1 else f"{preview.tokens or 0:,} tokens"
        said = tokens if preview.error is None else "cannot be scored"
        console.print(Rule(as_text(f"{preview.custom_id}, {said}"), align="left"))
        if preview.error is not None:
            console.print(as_text(f"{preview.error.type}: {preview.error.message}"), soft_wrap=True)
        else:
            console.print(as_text(preview.prompt or ""), soft_wrap=True)
        for label in preview.labels:
            console.print(as_text(f"{preview.label_word} {label!r}"), style="dim", soft_wrap=True)
    if not previews:
        console.print("the source has no rows")


def as_json(previews: list[Preview]) -> str:
    return json.dumps([_record(preview) for preview in previews], ensure_ascii=False, indent=2)


def _record(preview: Preview) -> dict[str, object]:
    return {
        "custom_id": preview.custom_id,
        "prompt": preview.prompt,
        "tokens": preview.tokens,
        "error_type": None if preview.error is None else preview.error.type,
    }
