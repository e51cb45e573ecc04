-- The plan's requests as they run, in columns of as many: how long prompts are, and their shared part, in the mean.
WITH node AS (
    SELECT file_row_number AS node, parent, start, "end", num_requests
    FROM read_parquet($nodes, file_row_number = true)
),
below AS (
    SELECT parent AS node, sum(num_requests) AS num_requests FROM node WHERE parent >= 0 GROUP BY parent
),
own AS (
    SELECT
        node.node,
        "end",
        CASE WHEN node.num_requests > 1 THEN "end" ELSE start END AS shared_end,
        node.num_requests - coalesce(below.num_requests, 0) AS num_own
    FROM node LEFT JOIN below USING (node)
),
placed AS (
    SELECT
        "end",
        shared_end,
        num_own,
        sum(num_own) OVER (ORDER BY node ROWS UNBOUNDED PRECEDING) - num_own AS first,
        sum(num_own) OVER () AS total
    FROM own
)
SELECT
    (first * $columns // total)::BIGINT AS "column",
    (sum("end" * num_own) / sum(num_own))::DOUBLE AS mean_tokens,
    (sum(shared_end * num_own) / sum(num_own))::DOUBLE AS mean_shared,
    max("end")::BIGINT AS most_tokens,
    any_value(total)::BIGINT AS total
FROM placed
WHERE num_own > 0
GROUP BY "column"
ORDER BY "column"
