SELECT shard_index, requests, errors, seconds, prompt_tokens, computed_prompt_tokens, generated_tokens
FROM shards
WHERE plan_id = $plan_id AND shard_index >= 0 AND requests > coalesce(from_store, 0)
ORDER BY seconds DESC, shard_index
LIMIT $most
