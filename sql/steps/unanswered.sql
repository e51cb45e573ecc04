-- Requests of the rows without an answer in the parts that `newest` reads, in the source's order. An error is one, but for
-- a retry. A name is a number of 16 bytes here: as text it would take three times the memory.
SELECT
    replace(wanted.request::VARCHAR, '-', '') AS request_hash,
    wanted.first_row,
    wanted.num_rows,
    coalesce(answered.attempts, 0) + 1 AS attempts
FROM (
    SELECT request_hash::UUID AS request, min(row_index) AS first_row, count(*) AS num_rows
    FROM read_parquet($rows)
    WHERE request_hash IS NOT NULL
    GROUP BY request
) AS wanted
LEFT JOIN (SELECT request_hash::UUID AS request, status, attempts FROM ({newest})) AS answered
    ON answered.request = wanted.request
WHERE answered.request IS NULL OR $full OR ($retry_failed AND answered.status = 'error')
ORDER BY wanted.first_row
