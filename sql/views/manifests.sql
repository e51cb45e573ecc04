SELECT *
FROM read_json({manifests}, format = 'newline_delimited', columns = {{
    plan_id: 'VARCHAR',
    shard_index: 'BIGINT',
    shard_id: 'VARCHAR',
    run_id: 'VARCHAR',
    fingerprint: 'VARCHAR',
    requests: 'BIGINT',
    rows: 'BIGINT',
    errors: 'BIGINT',
    seconds: 'DOUBLE',
    prompt_tokens: 'BIGINT',
    row_prompt_tokens: 'BIGINT',
    planned_tokens: 'BIGINT',
    computed_prompt_tokens: 'BIGINT',
    generated_tokens: 'BIGINT',
    row_errors: 'BIGINT',
    from_store: 'BIGINT',
    files: 'STRUCT(name VARCHAR, sha256 VARCHAR, "rows" BIGINT, bytes BIGINT)[]'
}})
