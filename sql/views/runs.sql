-- What the record of a run that goes on cannot say yet is read from its progress. A run is not alive, whatever its
-- record says, where the folder is not held by its `holder`.
CREATE VIEW runs AS
WITH run AS (
    SELECT
        * EXCLUDE (holder) REPLACE (
            CASE WHEN status = 'running' AND holder IS DISTINCT FROM {alive} THEN 'interrupted' ELSE status END AS status
        )
    FROM ({records})
)
SELECT
    run.* REPLACE (
        coalesce(run.seconds, live.seconds) AS seconds,
        coalesce(run.rows_done, live.rows_done) AS rows_done,
        coalesce(run.row_errors, live.row_errors) AS row_errors,
        coalesce(run.scored, live.scored) AS scored,
        coalesce(run.errors, live.errors) AS errors,
        coalesce(run.computed_prompt_tokens, live.computed_prompt_tokens) AS computed_prompt_tokens,
        coalesce(run.generated_tokens, live.generated_tokens) AS generated_tokens
    ),
    CASE
        WHEN run.status = 'running' THEN live.tokens_per_second
        ELSE (run.computed_prompt_tokens + run.generated_tokens) / nullif(run.seconds, 0)
    END AS tokens_per_second,
    CASE WHEN run.status = 'running' THEN live.seconds_left END AS seconds_left,
    CASE WHEN run.status = 'running' THEN live.stage END AS stage
FROM run
LEFT JOIN ({progress}) AS live ON live.run_id = run.run_id
ORDER BY run.sequence
