CREATE VIEW label_counts AS
SELECT
    task,
    label,
    count(*) AS num_rows,
    round(count(*) / sum(count(*)) OVER (PARTITION BY task), 4) AS fraction,
    round(avg(label_probs[label]), 4) AS mean_probability,
    round(min(min_margin), 4) AS least_margin
FROM results
WHERE label IS NOT NULL
GROUP BY task, label
ORDER BY task, num_rows DESC, label
