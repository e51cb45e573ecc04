-- One row a run, out of what it committed itself. `prompt_tokens` are the rows' as written; equal rows
-- once give `unique_prompt_tokens`; the fractions are of those, so that they say what sharing alone saves.
CREATE VIEW prefix_savings AS
SELECT
    run.run_id,
    run.plan_id,
    coalesce(sum(share.row_prompt_tokens), 0)::BIGINT AS prompt_tokens,
    coalesce(sum(share.prompt_tokens), 0)::BIGINT AS unique_prompt_tokens,
    coalesce(sum(share.computed_prompt_tokens), 0)::BIGINT AS computed_prompt_tokens,
    coalesce(sum(share.planned_tokens), 0)::BIGINT AS planned_tokens,
    coalesce(1 - sum(share.computed_prompt_tokens) / nullif(sum(share.prompt_tokens), 0), 0)::DOUBLE AS saved_fraction,
    any_value(run.ideal_saved_fraction) AS ideal_saved_fraction
FROM runs AS run
LEFT JOIN detail.shares AS share ON share.run_id = run.run_id
GROUP BY run.run_id, run.plan_id, run.sequence
ORDER BY run.sequence
