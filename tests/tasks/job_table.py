"""The table of `docs/job.md`, made from the job's schema: `python -m tests.tasks.job_table` rewrites it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tasks.job.job import ScoringJob

PAGE = Path(__file__).parents[2] / "docs" / "job.md"
BEGIN, END = "<!-- keys:begin -->", "<!-- keys:end -->"

Schema = dict[str, Any]
WORDS = {"string": "text", "integer": "whole number", "number": "number", "boolean": "true or false"}


def job_table() -> str:
    schema = ScoringJob.model_json_schema()
    return "\n".join(["| key | type | default | meaning |", "|---|---|---|---|", *_rows(schema, schema["$defs"], "")])


def written(page: str) -> str:
    """What stands between the markers. Raises ValueError where there are none."""
    return page[page.index(BEGIN) + len(BEGIN) : page.index(END)].strip()


def rewrite() -> None:
    before, _, rest = PAGE.read_text().partition(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}\n{job_table()}\n{END}{rest.partition(END)[2]}")


def _rows(group: Schema, groups: Schema, prefix: str) -> Iterator[str]:
    for name, field in group["properties"].items():
        inner = next((groups[ref.rpartition("/")[2]] for ref in _references(field)), None)
        key, default = f"{prefix}{name}", "required" if name in group.get("required", ()) else _default(field)
        if inner is None:
            yield f"| `{key}` | {_type(field)} | {default} | {field['description']} |"
        else:
            needed = "required" if default == "required" else ""
            yield f"| **`{key}`** | group | {needed} | {inner['description']} |"
            yield from _rows(inner, groups, f"{key}.")


def _references(field: Schema) -> list[str]:
    return [one["$ref"] for one in (field, *field.get("anyOf", ())) if "$ref" in one]


def _default(field: Schema) -> str:
    value = field.get("default")
    if value in (None, [], {}):
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return ", ".join(value)
    if isinstance(value, int) and value and value % 2**30 == 0:
        return f"{value // 2**30}GiB"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _type(field: Schema) -> str:
    if "anyOf" in field:
        return " or ".join(_type(one) for one in field["anyOf"] if one.get("type") != "null")
    if "enum" in field or "const" in field:
        return ", ".join(f"`{value}`" for value in field.get("enum", [field.get("const")]))
    if "type" not in field:
        return "anything"
    if field["type"] == "array":
        return f"list of {_type(field['items']).replace('number', 'numbers')}"
    if field["type"] == "object" and field["additionalProperties"] is True:
        return "mapping"
    if field["type"] == "object":
        return f"mapping of text to {_type(field['additionalProperties'])}"
    return WORDS[field["type"]] + _bounds(field)


def _bounds(field: Schema) -> str:
    signs = (("minimum", "≥"), ("exclusiveMinimum", ">"), ("maximum", "≤"))
    bounds = [f"{sign} {field[name]:,}" for name, sign in signs if name in field]
    return f", {' and '.join(bounds)}" if bounds else ""


if __name__ == "__main__":
    rewrite()
