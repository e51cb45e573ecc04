SELECT CASE WHEN is_greedy THEN 'greedy' ELSE 'not greedy' END AS continuation, count(*) AS num_rows
FROM results
WHERE coalesce(task, $own) = $task
GROUP BY is_greedy
ORDER BY num_rows DESC, continuation
