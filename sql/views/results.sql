CREATE VIEW results AS SELECT * EXCLUDE (row_index) FROM detail.outcomes WHERE status = 'ok'
