-- Lines whose id an earlier one has, in the file's order.
SELECT line
FROM (SELECT line, row_number() OVER (PARTITION BY custom_id ORDER BY line) AS place FROM read_parquet($ids))
WHERE place > 1
ORDER BY line
