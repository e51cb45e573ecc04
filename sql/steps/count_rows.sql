SELECT
    (SELECT count(*) FROM read_parquet($rows)) AS num_rows,
    (SELECT count(*) FROM {outcomes}) AS ended
