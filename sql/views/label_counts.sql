CREATE VIEW label_counts AS
SELECT
    task,
    label,
    count(*) AS num_rows,
    count(*) / sum(count(*)) OVER (PARTITION BY task) AS fraction,
    avg(label_probs[label]) AS mean_probability,
    min(min_margin) AS least_margin
FROM results
WHERE label IS NOT NULL
GROUP BY task, label
ORDER BY task, num_rows DESC, label
