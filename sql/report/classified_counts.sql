-- The labels that were given, then how much probability was on none of them.
(
    SELECT label, count(*) AS num_rows
    FROM results
    WHERE coalesce(task, $own) = $task
    GROUP BY label
    ORDER BY num_rows DESC, label
    LIMIT 20
)
UNION ALL
SELECT 'mean probability on no label', printf('%.3f', avg(missing_mass))
FROM results
WHERE coalesce(task, $own) = $task
HAVING count(*) > 0
