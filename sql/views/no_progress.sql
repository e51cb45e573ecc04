-- The columns of a run's progress, for an output folder that has none.
SELECT
    NULL::VARCHAR AS run_id,
    NULL::VARCHAR AS stage,
    NULL::DOUBLE AS seconds,
    NULL::BIGINT AS rows_done,
    NULL::BIGINT AS row_errors,
    NULL::BIGINT AS scored,
    NULL::BIGINT AS errors,
    NULL::BIGINT AS computed_prompt_tokens,
    NULL::BIGINT AS generated_tokens,
    NULL::DOUBLE AS tokens_per_second,
    NULL::DOUBLE AS seconds_left
WHERE false
