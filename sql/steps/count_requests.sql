SELECT count(*) AS num_rows, count(error_type) AS rejected, count(DISTINCT request_hash) AS unique_requests
FROM read_parquet($rows)
