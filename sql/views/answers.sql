-- Every answer that a row of the newest plan ever got, one for each time that it was scored: what it said, in a word,
-- and with which figure, or figures. `sequence` is the run's that gave it; a row that was rejected has one answer, of no
-- run.
CREATE VIEW detail.answers AS
SELECT
    {folder} AS folder,
    row.row_index,
    row.custom_id,
    coalesce(part.status, 'error') AS status,
    part.task,
    coalesce(part.label, part.generated_text) AS answer,
    coalesce(part.label_probs[part.label], part.score, part.perplexity, part.logprob, part.cumulative_logprob) AS value,
    part.scores,
    part.embedding,
    coalesce(part.attempts, 0) AS attempts,
    coalesce(try_cast(split_part(part.run_id, '-', 2) AS BIGINT), 0) AS sequence
FROM read_parquet({rows}) AS row
LEFT JOIN ({parts}) AS part ON part.request_hash = row.request_hash
WHERE row.error_type IS NOT NULL OR part.request_hash IS NOT NULL
