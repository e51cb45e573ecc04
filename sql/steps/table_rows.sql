INSERT INTO {table} SELECT * FROM answer
