CREATE VIEW detail.all_names AS SELECT * FROM query_table({tables})
