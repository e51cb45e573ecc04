-- `text` is cut: it is for a person's terminal.
SELECT custom_id, left(generated_text, 80) || CASE WHEN length(generated_text) > 80 THEN '…' ELSE '' END AS text
FROM detail.outcomes
WHERE status = 'ok' AND coalesce(task, $own) = $task
ORDER BY row_index
LIMIT 5
