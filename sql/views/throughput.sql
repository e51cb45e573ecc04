-- How fast each run was over all of its time, loading included. Tokens of prompts count as written, and as computed.
CREATE VIEW throughput AS
SELECT
    run_id,
    status,
    model,
    device,
    dtype,
    scored AS requests,
    seconds,
    scored / nullif(seconds, 0) AS requests_per_second,
    prompt_tokens / nullif(seconds, 0) AS prompt_tokens_per_second,
    computed_prompt_tokens / nullif(seconds, 0) AS computed_prompt_tokens_per_second,
    generated_tokens / nullif(seconds, 0) AS generated_tokens_per_second,
    limit_share
FROM runs
ORDER BY sequence
