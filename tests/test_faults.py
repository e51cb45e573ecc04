"""Every fault has a test that bears its number, and the page says which."""

from tests.faults import FAULTS, PAGE, marked, table, written


def test_every_fault_is_tested() -> None:
    assert sorted(marked()) == sorted(FAULTS)


def test_the_page_has_what_is_tested() -> None:
    """`python -m tests.faults` rewrites it."""
    assert written(PAGE.read_text()) == table()
