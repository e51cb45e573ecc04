-- What a database has of its own that a person would miss.
SELECT if(schema_name = 'main', name, schema_name || '.' || name) AS name, kind
FROM (
    SELECT schema_name, table_name AS name, 'table' AS kind FROM duckdb_tables() WHERE NOT internal
    UNION ALL
    SELECT schema_name, view_name, 'view' FROM duckdb_views() WHERE NOT internal
    UNION ALL
    SELECT schema_name, function_name, 'macro' FROM duckdb_functions() WHERE NOT internal
    UNION ALL
    SELECT schema_name, sequence_name, 'sequence' FROM duckdb_sequences()
    UNION ALL
    SELECT schema_name, type_name, 'type' FROM duckdb_types() WHERE NOT internal
)
ORDER BY name
