-- What shares a prefix follows each other, which prompts of two adapters never do. A prompt may be asked in several
-- ways; their names keep the order the same.
SELECT * FROM read_parquet($requests) ORDER BY adapter NULLS FIRST, prompt_token_ids, request_hash
