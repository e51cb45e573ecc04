SELECT prompt_tokens, unique_prompt_tokens, computed_prompt_tokens, saved_fraction, ideal_saved_fraction
FROM prefix_savings
WHERE run_id = $run_id
