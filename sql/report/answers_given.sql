-- What was answered, most first: the label, or how the text ended. A label's probability is known where all labels' are.
SELECT
    coalesce(task, $own) AS task,
    coalesce(label, CASE WHEN is_greedy THEN 'greedy' WHEN NOT is_greedy THEN 'not greedy' END, finish_reason) AS answer,
    count(*) AS num_rows,
    avg(label_probs[label]) AS mean_probability,
    median(min_margin) AS median_margin
FROM results
GROUP BY ALL
HAVING answer IS NOT NULL
ORDER BY num_rows DESC, task, answer
LIMIT $most
