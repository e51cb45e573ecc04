-- How fast each run was over all of its time, loading included. Tokens of prompts count as written, and as computed.
CREATE VIEW throughput AS
SELECT
    run_id,
    status,
    model,
    device,
    dtype,
    scored AS requests,
    round(seconds, 1) AS seconds,
    round(scored / nullif(seconds, 0), 1) AS requests_per_second,
    round(prompt_tokens / nullif(seconds, 0), 1) AS prompt_tokens_per_second,
    round(computed_prompt_tokens / nullif(seconds, 0), 1) AS computed_prompt_tokens_per_second,
    round(generated_tokens / nullif(seconds, 0), 1) AS generated_tokens_per_second,
    limit_share
FROM runs
ORDER BY sequence
