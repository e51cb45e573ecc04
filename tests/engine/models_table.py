"""The tables of `docs/models.md`, made from what the code and the tests have: `python -m tests.engine.models_table`."""

from pathlib import Path

from engine.model.linear_schemes import LINEAR_SCHEMES
from tests.engine.families import REFUSED, SERVED

PAGE = Path(__file__).parents[2] / "docs" / "models.md"
DEVICES = {"torch": "CPU", "triton": "GPU"}


def tables() -> dict[str, str]:
    """By the name of its markers."""
    return {"models": models_table(), "schemes": schemes_table()}


def models_table() -> str:
    lines = ["| family | `model_type` | special |", "|---|---|---|"]
    lines += [f"| {f.name} | `{f.model_type}` | {', '.join(f.special)} |" for f in SERVED]
    lines += ["", "Refused, by name and before any weight is read:", "", "| why | `model_type` |", "|---|---|"]
    lines += [f"| {reason} | {', '.join(f'`{name}`' for name in names)} |" for reason, names in REFUSED.items()]
    return "\n".join(lines)


def schemes_table() -> str:
    lines = ["| `quantization` | device | layers | weights | activations | kernel |", "|---|---|---|---|---|---|"]
    for scheme in LINEAR_SCHEMES:
        cells = (DEVICES[scheme.backend], scheme.layers, scheme.weights, scheme.activations, f"`{scheme.kernel}`")
        lines.append(f"| `{scheme.quantization}` | {' | '.join(cells)} |")
    return "\n".join(lines)


def written(page: str, name: str) -> str:
    """What stands between the markers of a table. Raises ValueError where there are none."""
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    return page[page.index(begin) + len(begin) : page.index(end)].strip()


def rewrite() -> None:
    page = PAGE.read_text()
    for name, table in tables().items():
        before, _, rest = page.partition(f"<!-- {name}:begin -->\n")
        page = f"{before}<!-- {name}:begin -->\n{table}\n{rest[rest.index(f'<!-- {name}:end -->') :]}"
    PAGE.write_text(page)


if __name__ == "__main__":
    rewrite()
