-- Committed shards; the rows of a checkpoint, which are of one that is not done yet, are in `results` and `errors`.
CREATE VIEW shards AS
SELECT * EXCLUDE (is_checkpoint, shares)
FROM ({manifests})
WHERE NOT coalesce(is_checkpoint, false)
ORDER BY plan_id, shard_index
