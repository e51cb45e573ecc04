-- Where the store has an answer to each of the wanted requests: its part, counted as `parts` has them, and its row there,
-- in that order. Where several parts have one, the first: they are answers to the same. A part and its row are one
-- number, for the least of numbers is spilled and the least of structs is not.
SELECT place >> 40 AS part, place & ((1::BIGINT << 40) - 1) AS part_row, attempts, num_rows
FROM (
    SELECT
        wanted.attempts,
        wanted.num_rows,
        min((parts.number << 40) | stored.file_row_number) AS place
    FROM read_parquet($parts, filename = true, file_row_number = true) AS stored
    JOIN read_parquet($wanted) AS wanted ON wanted.request_hash::UUID = stored.request_hash::UUID
    JOIN (SELECT unnest($parts) AS name, unnest(range(len($parts))) AS number) AS parts ON parts.name = stored.filename
    GROUP BY wanted.first_row, wanted.attempts, wanted.num_rows
)
ORDER BY place
