-- Of this folder and of those that are open beside it.
CREATE VIEW detail.all_answers AS SELECT * FROM query_table({tables})
