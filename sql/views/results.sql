CREATE VIEW results AS SELECT * FROM detail.outcomes WHERE status = 'ok'
