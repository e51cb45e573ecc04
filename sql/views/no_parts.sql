-- The result parts' columns, for an output folder where nothing is committed yet.
SELECT
    NULL::VARCHAR AS request_hash,
    NULL::VARCHAR AS status,
    NULL::VARCHAR AS task,
    NULL::VARCHAR AS generated_text,
    NULL::INTEGER[] AS token_ids,
    NULL::VARCHAR AS finish_reason,
    NULL::INTEGER AS prompt_tokens,
    NULL::INTEGER AS completion_tokens,
    NULL::INTEGER AS cached_tokens,
    NULL::DOUBLE AS cumulative_logprob,
    NULL::VARCHAR AS logprobs,
    NULL::STRUCT(
        "index" INTEGER, "text" VARCHAR, token_ids INTEGER[], finish_reason VARCHAR, cumulative_logprob DOUBLE
    )[] AS outputs,
    NULL::VARCHAR AS label,
    NULL::MAP(VARCHAR, DOUBLE) AS label_probs,
    NULL::MAP(VARCHAR, DOUBLE) AS label_logprobs,
    NULL::DOUBLE AS logprob,
    NULL::BOOLEAN AS is_greedy,
    NULL::VARCHAR AS error_type,
    NULL::VARCHAR AS error_message,
    NULL::INTEGER AS attempts,
    NULL::VARCHAR AS run_id,
    NULL::VARCHAR AS shard_id
WHERE false
