"""The README's section on models, made from what the tests run: `python -m tests.engine.models_table` rewrites it."""

from pathlib import Path

from tests.engine.families import REFUSED, SERVED

README = Path(__file__).parents[2] / "README.md"
BEGIN, END = "<!-- models:begin -->", "<!-- models:end -->"


def models_table() -> str:
    lines = ["| family | `model_type` | special |", "|---|---|---|"]
    lines += [f"| {f.name} | `{f.model_type}` | {', '.join(f.special)} |" for f in SERVED]
    lines += ["", "Refused, by name and before any weight is read:", "", "| why | `model_type` |", "|---|---|"]
    lines += [f"| {reason} | {', '.join(f'`{name}`' for name in names)} |" for reason, names in REFUSED.items()]
    return "\n".join(lines)


def written(readme: str) -> str:
    """What stands between the markers. Raises ValueError where there are none."""
    return readme[readme.index(BEGIN) + len(BEGIN) : readme.index(END)].strip()


def rewrite() -> None:
    readme = README.read_text()
    README.write_text(readme.replace(written(readme), models_table()))


if __name__ == "__main__":
    rewrite()
