SELECT
    run_id,
    prompt_tokens,
    unique_prompt_tokens,
    computed_prompt_tokens,
    saved_fraction,
    coalesce(ideal_saved_fraction, 0) AS ideal_saved_fraction
FROM prefix_savings
