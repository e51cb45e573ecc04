"""The page about errors is what the code says, and the code says of each error why it comes and what to do."""

import re

import pytest

from engine import errors
from tasks.source import row_error
from tests.tasks.errors_table import PAGE, Documented, error_classes, row_errors, tables, written


@pytest.mark.parametrize("name", ["rows", "classes"])
def test_the_page_has_the_codes_table(name: str) -> None:
    assert written(PAGE.read_text(), name) == tables()[name], "python -m tests.tasks.errors_table"


def test_what_is_found_in_the_code_is_there() -> None:
    rows = {one.name for one in row_errors()}
    assert {name for name in vars(row_error) if re.fullmatch(r"[A-Z]+_[A-Z_]+", name)} <= rows
    assert {"BAD_ADAPTER", "BAD_GRAMMAR", "NON_FINITE", "NO_TOKEN", "OUT_OF_MEMORY"} <= rows
    classes = {one.name for one in error_classes()}
    ours = {name for name, value in vars(errors).items() if isinstance(value, type)}
    assert ours - classes == {"TerminalError", "TransientError"}  # of which the others are made
    assert {"RunStoppedError", "DamagedError", "TooManyErrorsError", "ShardsFailedError"} <= classes


@pytest.mark.parametrize("one", [*row_errors(), *error_classes()], ids=lambda one: one.name)
def test_each_says_why_and_what_to_do(one: Documented) -> None:
    assert re.fullmatch(r"[A-Z`].+\.", one.why)
    assert re.fullmatch(r"[A-Z`].+\.", one.cure)
    assert "|" not in one.why + one.cure
