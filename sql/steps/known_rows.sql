-- Rows that another plan has by their digest, with their request, if it has an answer in the parts that `newest` reads,
-- or the reason why they have none; in the source's order. An error is an answer, but for a retry.
SELECT digest.row_index, known.request_hash, known.prompt_tokens, known.error_type, known.error_message
FROM read_parquet($digests) AS digest
JOIN (
    SELECT DISTINCT ON (before.row_digest)
        before.row_digest,
        row.request_hash,
        row.prompt_tokens,
        row.error_type,
        row.error_message
    FROM read_parquet($digests_before) AS before
    JOIN read_parquet($rows_before) AS row ON row.row_index = before.row_index
    LEFT JOIN (SELECT request_hash, status FROM ({newest})) AS answered ON answered.request_hash = row.request_hash
    WHERE answered.status = 'ok'
        OR (NOT $retry_failed AND (row.error_type IS NOT NULL OR answered.request_hash IS NOT NULL))
) AS known ON known.row_digest = digest.row_digest
ORDER BY digest.row_index
