"""Request bodies that give no prompt: each says what it lacks."""

import pytest

from tasks.request.body import parse_body
from tasks.source.row_error import BAD_MESSAGES, EMPTY_PROMPT, RowError


@pytest.mark.parametrize(
    ("value", "kind", "message"),
    [
        (None, BAD_MESSAGES, "there is no request body"),
        ("not JSON", BAD_MESSAGES, "the body is not a JSON object"),
        ("[1]", BAD_MESSAGES, "the body is not a JSON object"),
        ('{"prompt": ""}', EMPTY_PROMPT, "the prompt is empty"),
        ('{"prompt": []}', EMPTY_PROMPT, "the prompt has no token"),
        (
            '{"prompt": ["a", "b"]}',
            BAD_MESSAGES,
            "the body has neither messages nor one prompt, which is a text or a list of tokens",
        ),
    ],
)
def test_bodies_without_a_prompt(value: str | None, kind: str, message: str) -> None:
    assert parse_body(value) == RowError(kind, message)
