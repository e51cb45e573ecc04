"""The tables of `docs/models.md`, made from what the tests run: `python -m tests.engine.models_table` rewrites them."""

from pathlib import Path

from tests.engine.families import REFUSED, SERVED

PAGE = Path(__file__).parents[2] / "docs" / "models.md"
BEGIN, END = "<!-- models:begin -->", "<!-- models:end -->"


def models_table() -> str:
    lines = ["| family | `model_type` | special |", "|---|---|---|"]
    lines += [f"| {f.name} | `{f.model_type}` | {', '.join(f.special)} |" for f in SERVED]
    lines += ["", "Refused, by name and before any weight is read:", "", "| why | `model_type` |", "|---|---|"]
    lines += [f"| {reason} | {', '.join(f'`{name}`' for name in names)} |" for reason, names in REFUSED.items()]
    return "\n".join(lines)


def written(page: str) -> str:
    """What stands between the markers. Raises ValueError where there are none."""
    return page[page.index(BEGIN) + len(BEGIN) : page.index(END)].strip()


def rewrite() -> None:
    page = PAGE.read_text()
    PAGE.write_text(page.replace(written(page), models_table()))


if __name__ == "__main__":
    rewrite()
