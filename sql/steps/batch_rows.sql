-- All rows of a batch with their ends, in the file's order, and when the run began that gave each its end.
SELECT outcome.*, epoch(run.started_at)::BIGINT AS created
FROM detail.outcomes AS outcome
LEFT JOIN runs AS run ON run.run_id = outcome.run_id
ORDER BY outcome.row_index
