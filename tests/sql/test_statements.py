from pathlib import Path

import duckdb
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.job.job_source import RESULT_COLUMNS
from tasks.storage.parts import PART_SCHEMA, newest_results
from tasks.storage.statements import identifier, literal, statement

FILES = sorted(Path(__file__).parents[2].joinpath("sql").rglob("*.sql"))


@pytest.mark.fault(23)
@given(st.text(alphabet=st.characters(exclude_characters="\x00", exclude_categories=["Cs"]), min_size=1))
def test_a_quoted_name_stays_one_name_and_a_text_one_text(text: str) -> None:
    [(value,)] = duckdb.sql(f"select {literal(text)} as {identifier(text)}").fetchall()
    assert value == text


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_statement_is_used_and_ends_without_a_semicolon(path: Path) -> None:
    tasks = Path(__file__).parents[2] / "tasks"
    room = path.parent.name
    name = path.stem if room == "report" else f"{room}/{path.stem}"
    sources = [source.read_text() for source in tasks.rglob("*.py")]
    assert any(f'"{name}"' in source or f"'{name}'" in source for source in sources)
    assert not path.read_text().rstrip().endswith(";")


def test_no_parts_has_the_parts_columns() -> None:
    relation = duckdb.sql(newest_results([]))
    assert relation.columns == PART_SCHEMA.names


def test_outcomes_have_the_result_columns() -> None:
    text = statement("views/outcomes", rows="", newest="", plan_run="")
    assert all(name in text for name in RESULT_COLUMNS)
