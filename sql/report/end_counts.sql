-- How many rows have a result, and how many which kind of error, most first.
SELECT status, error_type, count(*) AS num_rows
FROM detail.outcomes
GROUP BY status, error_type
ORDER BY num_rows DESC, error_type
