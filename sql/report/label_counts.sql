-- A part that an earlier version wrote names no task: it is the job's `own`.
SELECT label, count(*) AS num_rows
FROM results
WHERE coalesce(task, $own) = $task
GROUP BY label
ORDER BY num_rows DESC, label
LIMIT 20
