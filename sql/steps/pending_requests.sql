-- Equal requests once, in the source's order, without those that have an answer. An error is one, but for a retry.
WITH wanted AS (
    SELECT request_hash, min(row_index) AS first_row, count(*) AS num_rows
    FROM read_parquet($rows)
    WHERE request_hash IS NOT NULL
    GROUP BY request_hash
),
answered AS (
    SELECT request_hash, status, attempts FROM ({newest})
)
SELECT
    request.request_hash,
    request.prompt_token_ids,
    request.labels,
    request.label_texts,
    request.max_tokens,
    request.ask,
    request.adapter,
    coalesce(answered.attempts, 0) + 1 AS attempts,
    wanted.num_rows
FROM read_parquet($requests) AS request
JOIN wanted ON wanted.first_row = request.row_index
LEFT JOIN answered ON answered.request_hash = request.request_hash
WHERE answered.request_hash IS NULL OR ($retry_failed AND answered.status = 'error')
ORDER BY request.row_index
