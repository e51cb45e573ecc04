-- What shares a prefix follows each other. A prompt may be asked in several ways; their names keep the order the same.
SELECT * FROM read_parquet($requests) ORDER BY prompt_token_ids, request_hash
