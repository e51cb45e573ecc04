"""The first texts of a run, for a terminal: one that is cut shows it."""

import duckdb

from tasks.storage.statements import statement


def test_a_text_that_is_cut_shows_it() -> None:
    connection = duckdb.connect()
    connection.execute("CREATE SCHEMA detail")
    connection.execute(
        "CREATE TABLE detail.outcomes AS SELECT * FROM (VALUES "
        "('whole', repeat('a', 80), 0, 'ok', 'generate'), "
        "('cut', repeat('b', 81), 1, 'ok', 'generate'), "
        "('error', NULL, 2, 'error', 'generate')"
        ") AS rows (custom_id, generated_text, row_index, status, task)"
    )
    found = connection.execute(statement("report/sample_texts"), {"own": "generate", "task": "generate"}).fetchall()
    assert found == [("whole", "a" * 80), ("cut", f"{'b' * 80}…")]
