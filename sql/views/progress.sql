SELECT *
FROM read_json({progress}, format = 'newline_delimited', columns = {{
    run_id: 'VARCHAR',
    stage: 'VARCHAR',
    seconds: 'DOUBLE',
    rows_done: 'BIGINT',
    row_errors: 'BIGINT',
    scored: 'BIGINT',
    errors: 'BIGINT',
    computed_prompt_tokens: 'BIGINT',
    generated_tokens: 'BIGINT',
    tokens_per_second: 'DOUBLE',
    seconds_left: 'DOUBLE'
}})
