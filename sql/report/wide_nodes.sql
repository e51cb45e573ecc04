-- Of the nodes that several requests share, and at least one of `columns` equal parts of all, those that stand for most
-- tokens as written; `first` of the plan's requests, as they run, is the first below each. A node's own requests run
-- before its children's.
WITH node AS (
    SELECT file_row_number AS node, parent, start, "end", num_requests
    FROM read_parquet($nodes, file_row_number = true)
),
below AS (
    SELECT parent AS node, sum(num_requests) AS num_requests FROM node WHERE parent >= 0 GROUP BY parent
),
own AS (
    SELECT node.*, node.num_requests - coalesce(below.num_requests, 0) AS num_own
    FROM node LEFT JOIN below USING (node)
)
SELECT
    (sum(num_own) OVER (ORDER BY node ROWS UNBOUNDED PRECEDING) - num_own)::BIGINT AS first,
    num_requests,
    start,
    "end"
FROM own
QUALIFY num_requests > 1 AND num_requests * $columns >= sum(num_own) OVER ()
ORDER BY num_requests * ("end" - start) DESC, node
LIMIT $most
