"""Makes the example's tables out of what every installation holds: the descriptions of its own packages.

`questions.parquet` has several questions about each package, and what the package's classifiers answer;
`packages.parquet` has one row a package, `searches.parquet` a row for what is looked for among them. All come from
the metadata of the installed distributions.
"""

import argparse
import importlib.metadata
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from examples.markup import cut, plain_text
from examples.questions import QUESTIONS, SEARCHES

DATA = Path("examples/data")
DESCRIPTION_CHARACTERS = 600
SUMMARY_CHARACTERS = 150
# Less text, or fewer classifiers, says too little to ask about.
FEWEST_CHARACTERS = 200
FEWEST_CLASSIFIERS = 3


@dataclass(frozen=True, slots=True)
class Package:
    """An installed distribution: its name, its one-line summary, the plain text of its description."""

    name: str
    summary: str
    description: str
    classifiers: tuple[str, ...]


def installed_packages() -> list[Package]:
    """The installed distributions that say enough about themselves, by name."""
    found = {package.name.lower(): package for package in map(_package, importlib.metadata.distributions()) if package}
    return [found[name] for name in sorted(found)]


def _package(distribution: importlib.metadata.Distribution) -> Package | None:
    metadata: dict[str, Any] = distribution.metadata.json
    text = plain_text(metadata.get("description") or "", DESCRIPTION_CHARACTERS)
    classifiers = tuple(metadata.get("classifier") or ())
    if metadata.get("license_expression"):
        classifiers += (f"License :: {metadata['license_expression']}",)
    if len(text) < FEWEST_CHARACTERS or len(classifiers) < FEWEST_CLASSIFIERS:
        return None
    summary = cut(re.sub(r"\s+", " ", metadata.get("summary") or "").strip(), SUMMARY_CHARACTERS)
    return Package(metadata["name"], summary, text, classifiers)


def question_rows(packages: list[Package]) -> Iterator[dict[str, object]]:
    """Every question about every package; `truth` is None where the classifiers do not say."""
    for package in packages:
        for question in QUESTIONS:
            yield {
                "row_id": f"{package.name}/{question.name}",
                "package": package.name,
                "summary": package.summary,
                "description": package.description,
                "question": question.name,
                "asked": question.text,
                "labels": list(question.labels),
                "truth": question.truth(package.classifiers),
            }


def package_rows(packages: list[Package]) -> Iterator[dict[str, object]]:
    for package in packages:
        yield {"package": package.name, "summary": package.summary, "description": package.description}


def search_rows(packages: list[Package]) -> Iterator[dict[str, object]]:
    """All packages beside what somebody looks for; `items` are what the model reads of each."""
    for search in SEARCHES:
        items = [f"{package.name}: {package.summary}" for package in packages]
        yield {"search": search, "packages": [package.name for package in packages], "items": items}


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the example's tables.")
    parser.add_argument("--folder", type=Path, default=DATA)
    parser.add_argument("--packages", type=int, default=None, help="take this many packages only")
    arguments = parser.parse_args()
    write_tables(arguments.folder, installed_packages()[: arguments.packages])


def write_tables(folder: Path, packages: list[Package]) -> None:
    """`questions.parquet`, a row a question about a package; `packages.parquet`, a row a package; the searches."""
    folder.mkdir(parents=True, exist_ok=True)
    tables = {
        "questions": question_rows(packages),
        "packages": package_rows(packages),
        "searches": search_rows(packages),
    }
    for name, rows in tables.items():
        table = pa.Table.from_pylist(list(rows))
        path = folder / f"{name}.parquet"
        pq.write_table(table, path)
        print(f"{path}: {table.num_rows} rows about {len(packages)} packages")


if __name__ == "__main__":
    main()
