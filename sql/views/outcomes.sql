-- Each row of the newest plan that has come to an end: its request's newest result, or why it was rejected.
CREATE VIEW detail.outcomes AS
SELECT
    row.custom_id,
    row.row_index,
    coalesce(part.status, 'error') AS status,
    part.task,
    part.generated_text,
    part.reasoning,
    CASE WHEN part.finish_reason = 'stop' THEN try_cast(part.generated_text AS JSON) END AS parsed,
    part.finish_reason,
    coalesce(part.prompt_tokens, row.prompt_tokens) AS prompt_tokens,
    part.completion_tokens,
    part.cached_tokens,
    part.cumulative_logprob,
    part.logprobs,
    part.outputs,
    part.prompt_logprobs,
    part.label,
    part.label_norm,
    part.label_probs,
    part.label_logprobs,
    part.missing_mass,
    part.score,
    part.scores,
    part.logprob,
    part.is_greedy,
    part.perplexity,
    part.min_margin,
    part.embedding,
    coalesce(row.error_type, part.error_type) AS error_type,
    coalesce(row.error_message, part.error_message) AS error_message,
    coalesce(part.attempts, 0) AS attempts,
    coalesce(part.run_id, {plan_run}) AS run_id,
    row.request_hash,
    row.* EXCLUDE (row_index, custom_id, prompt_tokens, error_type, error_message, request_hash)
FROM read_parquet({rows}) AS row
LEFT JOIN ({newest}) AS part ON part.request_hash = row.request_hash
WHERE row.error_type IS NOT NULL OR part.request_hash IS NOT NULL
