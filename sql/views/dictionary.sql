-- What the views, their columns and the macros mean: their comments.
CREATE VIEW dictionary AS
SELECT name, column_name, kind, comment
FROM (
    SELECT view_name AS name, NULL AS column_name, 'view' AS kind, comment, 0 AS place
    FROM duckdb_views()
    WHERE database_name = current_database() AND schema_name = 'main' AND NOT internal
    UNION ALL
    SELECT function_name || '(' || array_to_string(parameters, ', ') || ')', NULL, 'macro', comment, 0
    FROM duckdb_functions()
    WHERE database_name = current_database() AND schema_name = 'main' AND function_type = 'table_macro' AND NOT internal
    UNION ALL
    SELECT table_name, column_name, data_type, comment, column_index
    FROM duckdb_columns()
    WHERE database_name = current_database() AND schema_name = 'main' AND NOT internal
)
ORDER BY name, place
