-- How many of a plan's requests are neither in its shards nor in a part: they had an answer when it was made, and lost it.
SELECT count(*)
FROM (
    SELECT request_hash::UUID AS request
    FROM read_parquet($rows)
    WHERE request_hash IS NOT NULL
    EXCEPT
    SELECT request_hash::UUID AS request
    FROM read_parquet($held)
)
