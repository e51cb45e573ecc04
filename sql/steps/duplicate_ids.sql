-- The first id, in the source's order, that more than one row has.
SELECT custom_id, count(*) AS num_rows
FROM read_parquet($ids)
GROUP BY custom_id
HAVING count(*) > 1
ORDER BY min(row_index)
LIMIT 1
