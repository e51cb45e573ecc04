CREATE VIEW runs AS
SELECT *
FROM read_json({records}, format = 'newline_delimited', columns = {{
    sequence: 'BIGINT',
    run_id: 'VARCHAR',
    status: 'VARCHAR',
    name: 'VARCHAR',
    model: 'VARCHAR',
    model_fingerprint: 'VARCHAR',
    dtype: 'VARCHAR',
    device: 'VARCHAR',
    retry_failed: 'BOOLEAN',
    version: 'VARCHAR',
    started_at: 'TIMESTAMP',
    ended_at: 'TIMESTAMP',
    seconds: 'DOUBLE',
    plan_id: 'VARCHAR',
    published_plan: 'VARCHAR',
    rows: 'BIGINT',
    rejected: 'BIGINT',
    unique_requests: 'BIGINT',
    committed_before: 'BIGINT',
    pending: 'BIGINT',
    scored: 'BIGINT',
    errors: 'BIGINT',
    prompt_tokens: 'BIGINT',
    unique_prompt_tokens: 'BIGINT',
    computed_prompt_tokens: 'BIGINT',
    planned_tokens: 'BIGINT',
    generated_tokens: 'BIGINT',
    ideal_saved_fraction: 'DOUBLE',
    error: 'VARCHAR'
}})
ORDER BY sequence
