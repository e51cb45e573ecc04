-- What `compare_runs` and `agreement` can be asked for: each run, whose answers are those up to its end, and the folder
-- itself, whose answers are the newest.
CREATE VIEW detail.names AS
SELECT run_id AS name, {folder} AS folder, sequence AS last_sequence FROM main.runs
UNION ALL
SELECT {folder}, {folder}, 9223372036854775807
