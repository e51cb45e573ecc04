-- Requests of the rows without an answer in the parts that `newest` reads. An error is one, but for a retry.
SELECT
    wanted.request_hash,
    wanted.first_row,
    wanted.num_rows,
    coalesce(answered.attempts, 0) + 1 AS attempts
FROM (
    SELECT request_hash, min(row_index) AS first_row, count(*) AS num_rows
    FROM read_parquet($rows)
    WHERE request_hash IS NOT NULL
    GROUP BY request_hash
) AS wanted
LEFT JOIN (SELECT request_hash, status, attempts FROM ({newest})) AS answered
    ON answered.request_hash = wanted.request_hash
WHERE answered.request_hash IS NULL OR $full OR ($retry_failed AND answered.status = 'error')
