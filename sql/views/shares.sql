-- What each run did of each shard, of those that are not done yet too. Shards of earlier versions are one run's alone.
CREATE VIEW detail.shares AS
WITH manifest AS (
    SELECT
        plan_id,
        shard_id,
        CASE WHEN len(shares) > 0 THEN shares ELSE [struct_pack(
            run_id := run_id,
            requests := requests,
            "rows" := "rows",
            errors := errors,
            seconds := seconds,
            prompt_tokens := prompt_tokens,
            row_prompt_tokens := row_prompt_tokens,
            planned_tokens := planned_tokens,
            computed_prompt_tokens := computed_prompt_tokens,
            generated_tokens := generated_tokens,
            row_errors := row_errors,
            from_store := from_store
        )] END AS shares
    FROM ({manifests})
)
SELECT plan_id, shard_id, unnest(shares, max_depth := 2)
FROM manifest
