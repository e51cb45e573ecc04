-- One row a run, out of the shards that it committed itself. `prompt_tokens` are the rows' as written; equal rows
-- once give `unique_prompt_tokens`; the fractions are of those, so that they say what sharing alone saves.
CREATE VIEW prefix_savings AS
SELECT
    run.run_id,
    run.plan_id,
    coalesce(sum(shard.row_prompt_tokens), 0)::BIGINT AS prompt_tokens,
    coalesce(sum(shard.prompt_tokens), 0)::BIGINT AS unique_prompt_tokens,
    coalesce(sum(shard.computed_prompt_tokens), 0)::BIGINT AS computed_prompt_tokens,
    coalesce(sum(shard.planned_tokens), 0)::BIGINT AS planned_tokens,
    coalesce(1 - sum(shard.computed_prompt_tokens) / nullif(sum(shard.prompt_tokens), 0), 0)::DOUBLE AS saved_fraction,
    any_value(run.ideal_saved_fraction) AS ideal_saved_fraction
FROM runs AS run
LEFT JOIN shards AS shard ON shard.run_id = run.run_id
GROUP BY run.run_id, run.plan_id, run.sequence
ORDER BY run.sequence
