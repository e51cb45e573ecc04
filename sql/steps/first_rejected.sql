-- The first row that could not be asked, and why.
SELECT custom_id, error_type, error_message
FROM read_parquet($rows)
WHERE error_type IS NOT NULL
ORDER BY row_index
LIMIT 1
