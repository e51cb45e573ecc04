CREATE VIEW errors AS SELECT * EXCLUDE (row_index) FROM detail.outcomes WHERE status = 'error'
