-- How many rows were how near to another answer: rows below each of the bounds, and at none of the bounds before it.
SELECT bound, count(*) AS num_rows
FROM (
    SELECT list_min(list_filter($bounds::DOUBLE[], lambda bound: min_margin < bound)) AS bound
    FROM results
    WHERE min_margin IS NOT NULL
)
GROUP BY bound
ORDER BY bound NULLS LAST
