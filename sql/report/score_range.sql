-- Of all scores, those of a row's items too.
WITH found AS (
    SELECT unnest(coalesce(scores, [score])) AS score
    FROM results
    WHERE coalesce(task, $own) = $task
), range AS (
    SELECT min(score) AS lowest, median(score) AS middle, max(score) AS highest FROM found
)
SELECT unnest(['lowest', 'median', 'highest']) AS name, printf('%.4f', unnest([lowest, middle, highest])) AS "value"
FROM range
WHERE lowest IS NOT NULL
