"""What the pages name is there: files, folders, modules, functions, links, entries of DECISIONS' index, figures."""

import ast
import re
from functools import cache
from pathlib import Path
from xml.etree import ElementTree

import pytest

ROOT = Path(__file__).parents[1]
README, DECISIONS, BENCHMARKS = ROOT / "README.md", ROOT / "DECISIONS.md", ROOT / "docs" / "benchmarks.md"
# A dated entry of DECISIONS or CHANGELOG may name what has gone since.
PAGES = [README, ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
PACKAGES = ("engine", "examples", "flows", "kernels", "sql", "tasks", "tests", "trunkline")
ON_THE_USERS_SIDE = {".peers/", ".venv/", "runs/", "parts/", "manifests/"}  # what running it makes
FILE = re.compile(r"([\w./-]+\.(?:py|sql|yaml|toml|svg|md|lock)|[\w./-]+/)(?:: (\w+))?")
MODULE = re.compile(rf"(?:{'|'.join(PACKAGES)})(?:\.\w+)+")


def id_of(page: Path) -> str:
    return page.name


def quoted(page: Path) -> list[str]:
    """What stands in backticks, outside code blocks; in a page it may go on in the next line."""
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    spans = re.findall(r"`([^`]+)`" if page.suffix == ".md" else r"`([^`\n]+)`", text)
    return [" ".join(span.split()) for span in spans]


@cache
def ours() -> frozenset[str]:
    """Our files and folders, these with a slash behind them, from the root."""
    folders = [ROOT / name for name in (*PACKAGES[:-1], "docs", ".ci")]
    paths = [*ROOT.iterdir(), *(path for folder in folders for path in folder.rglob("*"))]
    files = {str(path.relative_to(ROOT)) for path in paths if path.is_file() and path.suffix != ".pyc"}
    return frozenset(files | {f"{folder}/" for file in files for folder in map(str, Path(file).parents)})


def found(name: str) -> list[str]:
    """Paths that `name` is, or is the end of."""
    return [name] if name in ours() else [path for path in ours() if path.endswith(f"/{name}")]


@cache
def defined(path: str) -> set[str]:
    """All functions, classes, methods and names that a Python file defines."""
    names = set()
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
    return names


@cache
def job_keys() -> set[str]:
    return set(re.findall(r"^\| (?:\*\*)?`([\w.]+)`", (ROOT / "docs" / "job.md").read_text(), re.MULTILINE))


def is_there(name: str) -> bool:
    """Whether a dotted name is a module, a package, or what a module defines."""
    module, inner = name, list[str]()
    while module and f"{module.replace('.', '/')}.py" not in ours():
        module, _, last = module.rpartition(".")
        inner.insert(0, last)
    path = name.replace(".", "/")
    if {f"{path}/", f"{path}/__main__.py"} & ours() or name in public():
        return True
    return bool(module) and set(inner) <= defined(f"{module.replace('.', '/')}.py")


def missing(page: Path) -> list[str]:
    """What the page names and is not there."""
    found_none = []
    for text in quoted(page):
        if match := FILE.fullmatch(text):
            paths = [] if match[1] in ON_THE_USERS_SIDE else found(match[1])
            named = match[2] is None or any(match[2] in defined(path) for path in paths)
            there = match[1] in ON_THE_USERS_SIDE or (bool(paths) and named)
        else:
            there = MODULE.fullmatch(text) is None or text in job_keys() or is_there(text)
        if not there:
            found_none.append(text)
    return found_none


@pytest.mark.parametrize("page", PAGES, ids=id_of)
def test_what_a_page_names_is_there(page: Path) -> None:
    assert missing(page) == []
    assert [name for name in re.findall(r"python -m ([\w.]+)", page.read_text()) if not is_there(name)] == []


def test_what_docstrings_and_comments_name_is_there() -> None:
    code = [path for name in PACKAGES[:-1] for path in sorted((ROOT / name).rglob("*.py"))]
    assert {path.relative_to(ROOT): names for path in code if (names := missing(path))} == {}


@cache
def public() -> set[str]:
    """Names of the module that is public, and of what a run tells others' tools."""
    told = re.findall(r'"(trunkline\.[\w.]+)"', (ROOT / "flows" / "telemetry" / "run_signals.py").read_text())
    steps = re.findall(r'telemetry\.step\("(\w+)"\)', (ROOT / "flows" / "score.py").read_text())
    module = re.findall(r'"(\w+)"', (ROOT / "trunkline.py").read_text())
    return {*told, *(f"trunkline.{name}" for name in (*module, *steps))}


def anchors(page: Path) -> list[str]:
    """GitHub's names of the page's headings."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]


@pytest.mark.parametrize("page", [*PAGES, DECISIONS], ids=id_of)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if not target.startswith("https://"):
            path, _, anchor = target.partition("#")
            file = page.parent / path if path else page
            assert file.is_file(), f"{page.name} links to {target}"
            assert not anchor or anchor in anchors(file), f"{page.name} links to {target}"


def test_every_decision_is_in_the_index_once() -> None:
    before, _, behind = DECISIONS.read_text().partition("## Index\n")
    assert "\n## " not in before, "the index comes first, then the newest entry"
    index = behind.partition("\n## ")[0]
    entries = [anchor for anchor in anchors(DECISIONS) if re.match(r"\d{4}-\d\d-\d\d", anchor)]
    assert sorted(re.findall(r"\]\(#([^)]+)\)", index)) == sorted(entries)
    for line in re.findall(r"^- (\d{4}-.*)$", index, re.MULTILINE):
        assert re.fullmatch(r"(\d{4}-\d\d-\d\d) \[.+\]\(#\1-.+\): .+\.", line), line


def test_the_decisions_lines_are_as_long_as_the_codes() -> None:
    """But for those of the index, and of tables."""
    lines = DECISIONS.read_text().splitlines()
    first = next(number for number, line in enumerate(lines) if line.startswith("## 2"))
    told = enumerate(lines[first:], first + 1)
    assert [number for number, line in told if len(line) > 120 and not line.startswith("|")] == []


def test_the_readme_is_short() -> None:
    assert len(README.read_text().splitlines()) < 200


def test_the_readmes_figures_are_the_benchmarks() -> None:
    measured = README.read_text().partition("## Measured\n")[2].partition("\n## ")[0]
    rows = [line.split("|")[2:5] for line in measured.splitlines() if re.match(r"\| (EPYC|H100)", line)]
    assert len(rows) == 6
    page = BENCHMARKS.read_text()
    for row in rows:
        for figure in row:
            assert figure.strip() in page


def test_the_picture_asks_for_nothing() -> None:
    picture = (ROOT / "docs" / "overview.svg").read_text()
    assert ElementTree.fromstring(picture).tag == "{http://www.w3.org/2000/svg}svg"
    assert re.findall(r"https?://[^\"]+", picture) == ["http://www.w3.org/2000/svg"]
    assert {"url(", "@import", "<image", "<script"} & set(re.findall(r"url\(|@import|<image|<script", picture)) == set()
    assert "prefers-color-scheme: dark" in picture
