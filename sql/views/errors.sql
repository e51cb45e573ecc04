CREATE VIEW errors AS SELECT * FROM detail.outcomes WHERE status = 'error'
