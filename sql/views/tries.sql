-- Which request had which try: two columns that a part of every version has, so that one file's schema is enough.
SELECT request_hash, attempts FROM read_parquet({files})
