-- The columns of `shards`, for an output folder where nothing is committed yet.
SELECT
    NULL::VARCHAR AS plan_id,
    NULL::BIGINT AS shard_index,
    NULL::VARCHAR AS shard_id,
    NULL::VARCHAR AS run_id,
    NULL::VARCHAR AS fingerprint,
    NULL::BIGINT AS requests,
    NULL::BIGINT AS rows,
    NULL::BIGINT AS errors,
    NULL::DOUBLE AS seconds,
    NULL::BIGINT AS prompt_tokens,
    NULL::BIGINT AS row_prompt_tokens,
    NULL::BIGINT AS planned_tokens,
    NULL::BIGINT AS computed_prompt_tokens,
    NULL::BIGINT AS generated_tokens,
    NULL::BIGINT AS row_errors,
    NULL::BIGINT AS from_store,
    NULL::STRUCT(name VARCHAR, sha256 VARCHAR, "rows" BIGINT, bytes BIGINT)[] AS files
WHERE false
