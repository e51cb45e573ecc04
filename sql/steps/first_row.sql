-- The name of the first row that asks a request.
SELECT custom_id FROM read_parquet($rows) WHERE request_hash = $request_hash ORDER BY row_index LIMIT 1
