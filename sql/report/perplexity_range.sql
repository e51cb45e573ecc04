WITH range AS (
    SELECT min(perplexity) AS lowest, median(perplexity) AS middle, max(perplexity) AS highest
    FROM results
    WHERE coalesce(task, $own) = $task
)
SELECT unnest(['lowest', 'median', 'highest']) AS name, printf('%.4g', unnest([lowest, middle, highest])) AS "value"
FROM range
WHERE lowest IS NOT NULL
