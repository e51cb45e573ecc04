-- The newest run that scored anything.
SELECT run_id FROM prefix_savings WHERE prompt_tokens > 0 ORDER BY run_id DESC LIMIT 1
