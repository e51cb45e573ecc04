-- All parts' rows. A part that an earlier version wrote has NULL in the columns that came later.
SELECT * FROM ({no_parts}) UNION ALL BY NAME SELECT * FROM read_parquet({files}, union_by_name = true)
