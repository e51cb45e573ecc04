SELECT len(embedding)::VARCHAR AS dimensions, count(*) AS num_rows
FROM results
WHERE coalesce(task, $own) = $task
GROUP BY dimensions
ORDER BY num_rows DESC, dimensions
