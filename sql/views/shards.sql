CREATE VIEW shards AS
SELECT *
FROM ({manifests})
ORDER BY plan_id, shard_index
