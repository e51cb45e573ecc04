-- What a run's own plan foretold of what it committed, and what it took.
SELECT
    coalesce(sum(requests - coalesce(from_store, 0)), 0)::BIGINT AS requests,
    coalesce(sum(planned_tokens), 0)::BIGINT AS planned_tokens,
    coalesce(sum(computed_prompt_tokens), 0)::BIGINT AS computed_prompt_tokens,
    coalesce(sum(generated_tokens), 0)::BIGINT AS generated_tokens
FROM detail.shares
WHERE run_id = $run_id
